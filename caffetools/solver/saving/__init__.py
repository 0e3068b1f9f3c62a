"""Snapshots on the disk: Caffe's two files and our third, written whole or not at all; finding the newest of them; one run at a time."""
