"""The best segmentation of a text by a signal and a lexicon, both without any boundary given: arrays in, arrays out."""
