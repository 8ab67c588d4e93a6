"""How an encoder is measured: one file for each protocol, found by its name."""

# The protocols of this package, the cheapest first.
PROTOCOLS = ("knn", "linear", "mlp", "finetune")
# Neighbours that vote, unless a flag says otherwise.
NEIGHBOURS = 10
