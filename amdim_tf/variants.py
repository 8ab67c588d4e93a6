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
# The methods that Table 1 compares with; docs/objectives.md says what each of them is.
PATCHES = {"image_size": 128, "patch_size": 32, "views.geometry": "crop"}
METHODS = {
    # With the learning rates of small configs, which are AMDIM's, f1 collapses in these two.
    "rotation": {"objective": "rotation", "learning_rate": 2e-4},
    "infomax_vae": {"objective": "infomax_vae", "learning_rate": 2e-4},
    "exemplar": {"objective": "exemplar", "views.number": 8, "views.gray_probability": 0.66},
    "patch_offset": {"objective": "patch_offset", "views.gray_probability": 0.66, **PATCHES},
    "jigsaw": {"objective": "jigsaw", "views.gray_probability": 0.66, **PATCHES},
    "cpc": {"objective": "cpc", "patch_grid": 7, **PATCHES},
    # For small images, at a fifth of the arithmetic.
    "cpc_3x3": {"objective": "cpc", "patch_grid": 3, **PATCHES, "image_size": 64},
    "cmc": {
        "objective": "cmc",
        "lab": True,
        "views.jitter_probability": 0.0,
        "views.gray_probability": 0.0,
    },
}
# Beyond the paper, found on CIFAR-10: docs/training.md has what each of them is worth.
RECIPE = {"learning_rate": 2e-3, "schedule": "cosine", "regulariser": 0.01}
# The recipe without one of them, after +recipe.
WITHOUT = {
    "-learning_rate": {"learning_rate": 2e-4},
    "-schedule": {"schedule": "steps"},
    "-regulariser": {"regulariser": 5e-2},
}
VARIANTS = PAPER | METHODS | {"+recipe": RECIPE} | WITHOUT
