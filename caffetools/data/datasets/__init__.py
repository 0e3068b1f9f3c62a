"""Building datasets: lists of images, splits, databases, means and the dataset card."""
