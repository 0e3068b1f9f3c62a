"""From a folder of images to a model that ships: build the data, retarget, train, deploy, classify, export to ONNX."""

import sys

import caffetools as ct

pictures, net, size = sys.argv[1], ct.zoo_prototxt("cifar10_quick", "train_val"), "32"
data = ct.build_dataset(pictures, "data", size=size, seed=1)
ct.retarget(net, dataset=data, base_lr=0.001, epochs=10, seed=1).save("net")
done = ct.train("net/solver.prototxt", device="cpu")
weights, options = done.snapshot.weights, {"mean": data.mean_file, "labels": data.labels_file}
for result in ct.classify([f"{pictures}/{data.classes[0]}/0.png"], "net/deploy.prototxt", weights, top=1, **options):
    print(result.picture, result.guesses[0].label, f"{result.guesses[0].probability:.2f}")
print(ct.export_onnx("net/deploy.prototxt", weights, "model.onnx", **options).describe())
