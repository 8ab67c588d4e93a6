"""What `--variant` changes in a config, by name."""

# The rows of the paper's tables. Local DIM (3.1) predicts f7 from f1 of the same, unaugmented view.
PAPER: dict[str, dict] = {
    "-color_jitter": {"views.jitter_probability": 0.0},
    "-random_gray": {"views.gray_probability": 0.0},
    "-random_crop": {"views.geometry": "none"},
    "-multiscale": {"tasks": "1-7"},
    "-stabilize": {"regulariser": 0.0, "clip": 0.0},
    "+strong_aug": {"views.autoaugment": "imagenet"},
    "local_dim": {
        "tasks": "1-7",
        "views.geometry": "none",
        "views.flip_probability": 0.0,
        "views.jitter_probability": 0.0,
        "views.gray_probability": 0.0,
    },
    "supervised": {"objective": "supervised"},
}
# Beyond the paper, found on CIFAR-10: docs/training.md has what each of them is worth.
RECIPE = {"learning_rate": 2e-3, "schedule": "cosine"}
# The recipe without one of them, after +recipe.
WITHOUT = {
    "-learning_rate": {"learning_rate": 2e-4},
    "-schedule": {"schedule": "steps"},
}
VARIANTS = PAPER | {"+recipe": RECIPE} | WITHOUT
