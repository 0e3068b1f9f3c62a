"""Learning-rate policies, update rules, snapshots, and the training loop."""
