"""Studies with trees that are wrong in one place, and what is said of each."""

from pathlib import Path

STUDIES = Path(__file__).resolve().parents[2] / "studies"
TREES = (STUDIES / "heart-trees.yaml").read_text()
RANDOM = (STUDIES / "heart-random-trees.yaml").read_text()
TORCH = (STUDIES / "example.yaml").read_text()
LABEL = "label: {name: disease, type: binary}"
METRICS_LINE = "metrics: [auc, accuracy, brier, log_loss]"

Pairs = list[tuple[str, str]]

PARAMS = "    min_data_per_group: 10"
FEDERATION = "  min_sites: 3"
ROUNDS = "  rounds: 60\n"
MISTAKES: dict[str, tuple[str, Pairs, tuple[str, str, str]]] = {
    "alias": (
        TREES,
        [(PARAMS, "    min_child_samples: 10")],
        (
            "recipe.params.min_child_samples",
            "is another name of min_data_in_leaf",
            "Write `min_data_in_leaf`: a study file has one name for each parameter.",
        ),
    ),
    "alias of what is not supported": (
        TREES,
        [(PARAMS, "    subsample: 0.8")],
        (
            "recipe.params.subsample",
            "is LightGBM's bagging_fraction, which cannot be set",
            "Leave it out: rows drawn at each site would make runs unrepeatable after a site's restart.",
        ),
    ),
    "not supported": (
        TREES,
        [(PARAMS, "    num_threads: 4")],
        (
            "recipe.params.num_threads",
            "cannot be set",
            "Leave it out: each hospital decides it, in the connector's settings (trainer.threads).",
        ),
    ),
    "near miss": (
        TREES,
        [(PARAMS, "    numleaves: 4")],
        ("recipe.params.numleaves", "is not a field here", "Did you mean `num_leaves`?"),
    ),
    "parameter outside of params": (
        TREES,
        [(ROUNDS, ROUNDS + "  num_leaves: 9\n")],
        (
            "recipe.num_leaves",
            "is not a field here",
            "LightGBM's parameters stand under params: write it there as params.num_leaves.",
        ),
    ),
    "rounds by LightGBM's name": (
        TREES,
        [(ROUNDS, ROUNDS + "  num_boost_round: 9\n")],
        (
            "recipe.num_boost_round",
            "is LightGBM's num_iterations, which cannot be set",
            "Leave it out: write recipe.rounds or federation.trees.",
        ),
    ),
    "no rounds": (
        TREES,
        [(ROUNDS, "")],
        ("recipe.rounds", "is missing", "Add rounds: with the number of boosting rounds."),
    ),
    "rounds twice": (
        TREES,
        [(FEDERATION, FEDERATION + "\n  trees: 61")],
        ("federation.trees", "is 61, but recipe.rounds is 60: they are the same number", "Keep one of them."),
    ),
    "rounds of averaging": (
        TREES,
        [(FEDERATION, FEDERATION + "\n  rounds: 5")],
        (
            "federation.rounds",
            "is 5, but the trainer lightgbm counts in trees",
            "Leave it out: recipe.rounds say how much is trained.",
        ),
    ),
    "rounds of random trees": (
        RANDOM,
        [(FEDERATION, FEDERATION + "\n  rounds: 5")],
        (
            "federation.rounds",
            "is 5, but the trainer lightgbm.random_trees counts in trees",
            "Leave it out: its trees say how much is trained.",
        ),
    ),
    "trees of random trees": (
        RANDOM,
        [(FEDERATION, FEDERATION + "\n  trees: 60")],
        (
            "federation.trees",
            "is 60, but the recipe itself says how many trees there are",
            "Leave it out: recipe.trees is the number of trees.",
        ),
    ),
    "averaging without rounds": (
        TORCH,
        [("  rounds: 30\n", "")],
        ("federation.rounds", "is missing", "Add rounds: with the number of rounds of averaging."),
    ),
    "averaging by trees": (
        TORCH,
        [("  rounds: 30", "  rounds: 30\n  trees: 30")],
        (
            "federation.trees",
            "is 30, but the trainer torch.mlp grows no trees",
            "Write rounds: with their number instead.",
        ),
    ),
    "buffered trees": (
        TREES,
        [("mode: synchronous", "mode: buffered")],
        (
            "federation.mode",
            "is buffered, but the trainer lightgbm grows each tree on the sums of all the others",
            "Write mode: synchronous.",
        ),
    ),
    "imputed for trees": (
        TREES,
        [("range: [50, 700],   missing: native", "range: [50, 700],   missing: impute")],
        (
            "dataset.features[4].missing",
            "is impute, but the trainer lightgbm learns a side for missing values and needs no mean",
            "Write missing: native, or missing: refuse.",
        ),
    ),
    "native for a network": (
        TORCH,
        [("missing: impute", "missing: native")],
        (
            "dataset.features[2].missing",
            "is native, but the trainer torch.mlp needs a number in every place",
            "Write missing: impute, or choose the trainer lightgbm.",
        ),
    ),
    "native category for a network": (
        TORCH,
        [('levels: ["0", "1"]', 'levels: ["0", "1"], missing: native')],
        (
            "dataset.features[1].missing",
            "is native, but the trainer torch.mlp needs a number in every place",
            "Write missing: level, or choose the trainer lightgbm.",
        ),
    ),
    "objective of another label": (
        TREES,
        [(PARAMS, "    objective: poisson")],
        (
            "recipe.params.objective",
            "is poisson, which does not fit a binary label",
            "Leave it out, or write binary.",
        ),
    ),
    "metric of another label": (
        TREES,
        [(METRICS_LINE, "metrics: [auc, rmse]")],
        (
            "metrics[1]",
            'is "rmse", which a binary label does not have',
            "Use auc, accuracy, brier, calibration or log_loss, or leave out metrics.",
        ),
    ),
    "stopped by another objective's metric": (
        TREES,
        [(PARAMS, "    metric: l2\n    early_stopping_round: 5")],
        (
            "recipe.params.metric",
            "is l2, which the objective binary cannot be stopped by",
            "Leave it out, or write binary_logloss or auc.",
        ),
    ),
    "metric that stops nothing": (
        TREES,
        [(PARAMS, "    metric: auc")],
        (
            "recipe.params.metric",
            "is auc, but early_stopping_round is 0: it decides nothing",
            "Leave it out, or add early_stopping_round. What is reported stands under metrics, outside the recipe.",
        ),
    ),
    "difference that stops nothing": (
        TREES,
        [(PARAMS, "    early_stopping_min_delta: 0.1")],
        (
            "recipe.params.early_stopping_min_delta",
            "is set, but early_stopping_round is 0: it decides nothing",
            "Leave it out, or add early_stopping_round.",
        ),
    ),
    "monotone in nothing": (
        TREES,
        [(PARAMS, "    monotone_constraints: {agee: 1}")],
        (
            "recipe.params.monotone_constraints.agee",
            "is not a feature of this study",
            "Features are age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal.",
        ),
    ),
    "monotone in a category": (
        TREES,
        [(PARAMS, "    monotone_constraints: {age: 1, sex: 1}")],
        (
            "recipe.params.monotone_constraints.sex",
            "is a category: its levels have no order to rise with",
            "Leave it out.",
        ),
    ),
    "weight of no level": (
        TREES,
        [(ROUNDS, ROUNDS + '  class_weight: {"1": 2, "2": 1}\n')],
        ("recipe.class_weight.2", "is not a level of the label disease", 'Its levels are "0", "1".'),
    ),
    "both weights": (
        TREES,
        [(PARAMS, "    is_unbalance: true\n    scale_pos_weight: 2")],
        (
            "recipe.params.is_unbalance",
            "is true, and scale_pos_weight is set: both weigh the label's 1",
            "Keep one of them.",
        ),
    ),
    "weight of a loss without": (
        TREES,
        [(PARAMS, "    poisson_max_delta_step: 0.5")],
        (
            "recipe.params.poisson_max_delta_step",
            "is set, but the objective is binary",
            "Leave it out: it is for the objective poisson only.",
        ),
    ),
    "part of a sum": (
        TREES,
        [(FEDERATION, FEDERATION + "\n  compression: {keep: 0.5}")],
        (
            "federation.compression.keep",
            "is 0.5, but sums for trees have no coordinates to leave out",
            "Leave out compression: trees send whole sums.",
        ),
    ),
    "server step": (
        RANDOM,
        [(FEDERATION, FEDERATION + "\n  server: {optimizer: fedadam}")],
        (
            "federation.server",
            "is set, but trees are not averaged",
            "Leave it out; the recipe's learning_rate says how far a tree moves it.",
        ),
    ),
    "proximal": (
        TREES,
        [(FEDERATION, FEDERATION + "\n  proximal_mu: 0.1")],
        ("federation.proximal_mu", "is 0.1, but trees are not averaged", "Leave it out."),
    ),
    "evaluated in between": (
        TREES,
        [(FEDERATION, FEDERATION + "\n  evaluate_every: 10")],
        (
            "federation.evaluate_every",
            "is 10, but the model is evaluated once, when it is grown",
            "Leave it out.",
        ),
    ),
    "cohort change without a session": (
        RANDOM,
        [(FEDERATION, FEDERATION + "\n  allow_cohort_change: true")],
        (
            "federation.allow_cohort_change",
            "is true, but rounds of the trainer lightgbm.random_trees go on without a lost site anyway",
            "Leave it out.",
        ),
    ),
    "more evaluations than sums": (
        RANDOM,
        [("evaluate_every: 5", "evaluate_every: 21")],
        ("federation.evaluate_every", "is 21, more than the 20 rounds", "Use at most 20."),
    ),
    "label of no kind": (
        TREES,
        [(LABEL, "label: {name: disease}")],
        ("dataset.label.type", "is missing", "Add type: binary, multiclass, number or count."),
    ),
    "label of another kind": (
        TREES,
        [(LABEL, "label: {name: disease, type: ordinal}")],
        ("dataset.label.type", 'is "ordinal"', "Use one of 'binary', 'multiclass', 'number', 'count'."),
    ),
    "a session of some": (
        TREES,
        [("mode: synchronous", "mode: synchronous\n  participants: 3")],
        (
            "federation.participants",
            "is 3, but a session of the trainer lightgbm keeps the sites that it began with",
            "Leave it out: all take part.",
        ),
    ),
    "a field of another label": (
        TREES,
        [(LABEL, "label: {name: disease, type: binary, levels: [a, b, c]}")],
        ("dataset.label.levels", "is not a field here", "Fields here are name, type."),
    ),
    "too few classes": (
        TREES,
        [(LABEL, "label: {name: stage, type: multiclass, levels: [calm, mild]}"), (METRICS_LINE + "\n", "")],
        (
            "dataset.label.levels",
            'is ["calm", "mild"]',
            "The list should have at least 3 items, not 2.",
        ),
    ),
    "class that is a missing value": (
        TREES,
        [(LABEL, "label: {name: stage, type: multiclass, levels: [calm, mild, nan]}"), (METRICS_LINE + "\n", "")],
        (
            "dataset.label.levels[2]",
            'is "nan", which is read as a missing value',
            "Leave it out: a label may not be missing.",
        ),
    ),
    "label too wide": (
        TREES,
        [(LABEL, "label: {name: days, type: number, range: [0, 1e16]}"), (METRICS_LINE + "\n", "")],
        (
            "dataset.label.range",
            "is too narrow or too wide to be measured in 65536 steps",
            "Choose a realistic range.",
        ),
    ),
    "label the wrong way round": (
        TREES,
        [(LABEL, "label: {name: days, type: number, range: [5, 1]}"), (METRICS_LINE + "\n", "")],
        ("dataset.label.range", "range of days must be [low, high] with low < high", "Correct it, or leave it out."),
    ),
}
