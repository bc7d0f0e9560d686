"""Labels of other programs as neurons: python -m neurodetect.labels LABELS regions.json

LABELS is one of these:
  a neurofinder regions.json
  ImageJ ROIs: the .zip that the ROI Manager saves, or one .roi
  a label image (.tif, .tiff, .png): 0 outside, and each neuron a number of its own
"""

from __future__ import annotations

from neurodetect import console


def main() -> None:
    args = console.labels_options(__doc__)

    from neurodetect.formats.labels import read_labels
    from neurodetect.regions import write_regions

    regions = read_labels(args.labels, tuple(args.shape) if args.shape else None)
    write_regions(args.regions, regions)
    console.say(f"Wrote {args.regions}: {console.count(len(regions), 'neuron')}")


if __name__ == "__main__":
    console.run(main)
