"""What a network is made of, and how two of them, or a network and weights, differ."""
