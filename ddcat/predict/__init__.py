"""A folder, a bucket or a video through a bundle's engine to files of masks: `ddcat predict`."""
