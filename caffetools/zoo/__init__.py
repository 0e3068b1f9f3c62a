"""The model zoo: cards, fetching and checking files, and the builders of our own networks."""
