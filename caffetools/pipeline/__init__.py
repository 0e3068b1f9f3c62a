"""The whole way in one call: fine-tuning on a folder of pictures, and the demo; each step is a function of another room."""
