"""Labels of other programs as neurons: python -m neurodetect.labels LABELS regions.json

LABELS is one of these:
  a neurofinder regions.json, or a submission.json of one recording
  ImageJ ROIs: the .zip that the ROI Manager saves, one .roi, or a folder of them
  a label image (.tif, .tiff, .png, .npy): 0 outside, and each neuron a number of its own
  what Suite2p (stat.npy) and Cellpose (NAME_seg.npy) save
"""

from __future__ import annotations

from neurodetect import console


def main() -> None:
    args = console.labels_options(__doc__)

    from neurodetect.formats.labels import read_named_labels
    from neurodetect.regions import write_regions

    neurons = read_named_labels(args.labels, tuple(args.shape) if args.shape else None)
    regions, names = [region for region, _ in neurons], [name for _, name in neurons]
    write_regions(args.regions, regions, names)
    console.say(f"Wrote {args.regions}: {console.count(len(regions), 'neuron')}")


if __name__ == "__main__":
    console.run(main)
