"""Draw where deploy.prototxt with weights.caffemodel looks in photo.jpg: a Grad-CAM map of layer conv3, as heat.png."""

import cv2
import numpy as np

import caffetools as ct
from caffetools.infer.preprocess import Preprocessor
from caffetools.infer.sidecar import read_preprocessing

net = ct.load_net("deploy.prototxt", "weights.caffemodel")
prepare = Preprocessor(net.blob_shapes["data"], read_preprocessing("deploy.prototxt"))
image = prepare.centre(prepare.read("photo.jpg"))[0]
heat = ct.visualize.grad_cam(net, image, layer="conv3", blob="ip2")
heat = np.uint8(255 * heat / max(float(heat.max()), 1e-9))
photo = cv2.imread("photo.jpg")
colours = cv2.applyColorMap(cv2.resize(heat, photo.shape[1::-1]), cv2.COLORMAP_VIRIDIS)
cv2.imwrite("heat.png", cv2.addWeighted(photo, 0.5, colours, 0.5, 0))
