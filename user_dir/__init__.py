import fairseq_hmrnn  # noqa: F401  fairseq puts this folder's parent, the repository, on sys.path before it imports this
