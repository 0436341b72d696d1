"""The contestants of translation.py: options of fairseq-train, and which of them are an architecture's dropout."""

# Sizes are such that all have the parameters of `lstm` within 5.1 % with dictionaries of 4,000 symbols, 8 % with 2,000.
LSTM_DECODER = "--decoder-embed-dim 128 --decoder-hidden-size 128 --decoder-out-embed-dim 128"
ENCODER = "--embed-dim 128 --hidden-sizes 76,76 --bidirectional"
TRANSFORMER_DECODER = "--decoder-embed-dim 128 --decoder-ffn-embed-dim 192 --decoder-layers 2"
HMLSTM_DECODER = "--output-dim 128 --decoder-hidden-sizes 84,84"
BOUNDARIES = "--criterion boundary_regularized_cross_entropy --boundary-rates {rate}"
MODELS = {
    "lstm": "--arch lstm --encoder-embed-dim 128 --encoder-hidden-size 128 --encoder-bidirectional "
    f"{LSTM_DECODER} --criterion cross_entropy",
    "hmlstm_lstm": f"--arch hmlstm_lstm {ENCODER} --encoder-memory steps {LSTM_DECODER} {BOUNDARIES}",
    "hmlstm_lstm-all-layers": f"--arch hmlstm_lstm {ENCODER} --encoder-memory all-layers --memory-dim 128 "
    f"{LSTM_DECODER} {BOUNDARIES}",
    "hmlstm_lstm-segments": f"--arch hmlstm_lstm {ENCODER} --encoder-memory segments:1 {LSTM_DECODER} {BOUNDARIES}",
    "hmlstm_lstm-means": f"--arch hmlstm_lstm {ENCODER} --encoder-memory means:1 {LSTM_DECODER} {BOUNDARIES}",
    "hmlstm": f"--arch hmlstm {ENCODER} --encoder-memory steps {HMLSTM_DECODER} {BOUNDARIES}",
    "hmlstm-unfed": f"--arch hmlstm {ENCODER} --encoder-memory steps {HMLSTM_DECODER} --no-input-feeding {BOUNDARIES}",
    "hmlstm-segments": f"--arch hmlstm {ENCODER} --encoder-memory segments:1 {HMLSTM_DECODER} {BOUNDARIES}",
    "hmlstm_transformer": f"--arch hmlstm_transformer {ENCODER} --encoder-memory steps "
    f"{TRANSFORMER_DECODER} {BOUNDARIES}",
    "hmlstm_transformer-segments": f"--arch hmlstm_transformer {ENCODER} --encoder-memory segments:1 "
    f"{TRANSFORMER_DECODER} {BOUNDARIES}",
    "hmlstm_transformer-means": f"--arch hmlstm_transformer {ENCODER} --encoder-memory means:1 "
    f"{TRANSFORMER_DECODER} {BOUNDARIES}",
    "transformer": "--arch transformer_tiny --encoder-embed-dim 128 --encoder-ffn-embed-dim 208 --encoder-layers 2 "
    "--encoder-attention-heads 4 --decoder-embed-dim 128 --decoder-ffn-embed-dim 208 --decoder-layers 2 "
    "--decoder-attention-heads 4 --criterion cross_entropy",
}

# By --arch: the options that one dropout probability goes to.
DROPOUTS = {
    "lstm": ("--dropout",),
    "transformer_tiny": ("--dropout",),
    "hmlstm": ("--dropout-input", "--dropout-memory", "--dropout-output"),
    "hmlstm_lstm": ("--dropout-input", "--dropout-memory", "--decoder-dropout-in", "--decoder-dropout-out"),
    "hmlstm_transformer": ("--dropout-input", "--dropout-memory", "--dropout"),
}


def options_of(name, rate, lr=None, dropout=None):
    """The options of a contestant, boundary rates, learning rate and dropout filled in; None: the default."""
    options = MODELS[name].format(rate=rate).split()
    if dropout is not None:
        options += [part for option in DROPOUTS[options[1]] for part in (option, str(dropout))]
    return options if lr is None else [*options, "--lr", str(lr)]
