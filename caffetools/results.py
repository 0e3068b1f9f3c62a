"""Plain result records that several rooms pass around."""
