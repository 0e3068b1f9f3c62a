"""A trained network for other classes: what is made anew, cut off, put in, and how fast it learns."""
