"""Read data/train_lmdb, a database that Caffe wrote, as a PyTorch dataset: its size, and the first batch."""

from torch.utils.data import DataLoader

from caffetools.data import LmdbDataset

dataset = LmdbDataset("data/train_lmdb", transform=lambda picture: picture.float() / 255)
images, labels = next(iter(DataLoader(dataset, batch_size=8)))
print(len(dataset), "records;", tuple(images.shape), labels.tolist())
