"""Tables of images and opinions: read, split, checked for leaks."""
