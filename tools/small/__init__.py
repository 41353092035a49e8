"""How the embedded backbone ``small`` is made, part by part."""
