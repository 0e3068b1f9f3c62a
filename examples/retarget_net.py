"""Write net/ for 5 classes from train_val.prototxt, with what of weights.caffemodel still fits."""

import caffetools as ct

made = ct.retarget("train_val.prototxt", 5, weights="weights.caffemodel", seed=1)
made.save("net")
for change in made.changes:
    print(change)
for layer in ct.inspect("net/train_val.prototxt").layers:
    print(f"{layer.name:10} {layer.type_name:15} {layer.shapes}")
