"""One image: decoded, cut into windows, read from archives, searched for its prompt."""
