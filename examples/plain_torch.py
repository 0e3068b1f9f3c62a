"""Train train_val.prototxt from weights.caffemodel with a PyTorch optimizer, and save trained.caffemodel, which Caffe reads."""

import torch

import caffetools as ct

net = ct.load_net("train_val.prototxt", "weights.caffemodel", "TRAIN")
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
for step in range(5):
    optimizer.zero_grad()
    loss = net.total_loss(net())  # the data layers give the batch
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.3f}")
ct.save_weights(net, "trained.caffemodel")
