"""From a NetParameter to something that runs: phases, in-place layers, sharing, fillers; ``Net`` is a ``torch.nn.Module``."""
