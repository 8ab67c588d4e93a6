"""How an encoder is measured: one file for each protocol, found by its name."""

# Those of this package, in order of what they cost.
PROTOCOLS = ("knn", "linear", "mlp", "finetune")
