"""The functions of the public API: thin calls into the rooms, imported only when they are used."""
