"""Print the most probable classes of photo.jpg (deploy.prototxt, weights.caffemodel, labels.txt; the mean is in deploy.json)."""

import caffetools as ct

for result in ct.classify(["photo.jpg"], "deploy.prototxt", "weights.caffemodel", labels="labels.txt", top=3):
    print(result.picture)
    for guess in result.guesses:
        print(f"  {guess.probability:.2%}  {guess.label}")
