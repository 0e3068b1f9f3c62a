"""The schema and the file formats: prototxt, caffemodel, solverstate, binaryproto."""
