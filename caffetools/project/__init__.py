"""One folder, one project: dataset, nets, solver, training, deployment and report."""
