"""The files of a training together: nets and solver, with the data that they are to read."""
