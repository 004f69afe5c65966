"""What is said of a LightGBM parameter that a study may not set: the name to write instead, or why there is none.

Together with `LightgbmParams` it covers every parameter and every alias of LightGBM 4.7; a test holds it against the
library's own list.
"""

from typing import Final

from cohortium_messages.lightgbm import LightgbmParams


def _reasons(*groups: tuple[str, str]) -> dict[str, str]:
    return {name: reason for names, reason in groups for name in names.split()}


UNSUPPORTED: Final[dict[str, str]] = _reasons(
    (
        "bagging_fraction bagging_freq pos_bagging_fraction neg_bagging_fraction bagging_seed bagging_by_query",
        "rows drawn at each site would make runs unrepeatable after a site's restart",
    ),
    (
        "data_sample_strategy top_rate other_rate",
        "sampling by gradient (GOSS) chooses rows by a threshold of each site's own",
    ),
    (
        "boosting drop_rate max_drop skip_drop uniform_drop xgboost_dart_mode drop_seed",
        "only gbdt is supported; dart and rf change trees that were published",
    ),
    ("tree_learner top_k", "it is always data: voting and feature parallel show what single sites found"),
    (
        "use_quantized_grad num_grad_quant_bins quant_train_renew_leaf stochastic_rounding",
        "its histograms travel in another form, which nobody has shown to be safe yet",
    ),
    ("linear_tree linear_lambda", "linear leaves are fitted on one site's rows"),
    ("num_machines", "the cohort decides it"),
    (
        "machines machine_list_filename local_listen_port time_out pre_partition",
        "sites talk through the broker only",
    ),
    ("num_threads", "each hospital decides it, in the connector's settings (trainer.threads)"),
    ("num_iterations", "write recipe.rounds or federation.trees"),
    ("num_class", "the levels of the label decide it"),
    (
        "device_type num_gpu gpu_platform_id gpu_device_id gpu_device_id_list gpu_use_dp",
        "each hospital decides it; trees are grown on the CPU",
    ),
    (
        "force_row_wise force_col_wise histogram_pool_size is_enable_sparse two_round",
        "it changes speed and memory only; each connector has its own setting",
    ),
    ("min_data_in_bin", "bins come from secure sums, with equal counts; max_bin says how many"),
    ("max_bin_by_feature", "max_bin holds for all features"),
    ("bin_construct_sample_cnt data_random_seed", "bins come from secure sums over all rows, not from a sample"),
    ("forcedbins_filename", "bins come from secure sums"),
    ("categorical_feature", "the study's features say which are categories"),
    ("use_missing zero_as_missing", "the study says of each feature what becomes of a missing value"),
    ("feature_pre_filter enable_bundle", "it looks at one site's rows"),
    ("forcedsplits_filename input_model", "files do not travel"),
    (
        "interaction_constraints feature_contri "
        "cegb_tradeoff cegb_penalty_split cegb_penalty_feature_lazy cegb_penalty_feature_coupled",
        "it is not shown to work over secure sums yet",
    ),
    ("monotone_constraints_method", "only LightGBM's default, basic, is shown to work over secure sums"),
    ("sigmoid", "scores of the evaluation are plain probabilities"),
    ("reg_sqrt", "scores of the evaluation are on the label's own scale"),
    (
        "alpha fair_c tweedie_variance_power objective_seed label_gain auc_mu_weights eval_at multi_error_top_k "
        "lambdarank_truncation_level lambdarank_norm lambdarank_position_bias_regularization",
        "it belongs to an objective or a metric that is not supported",
    ),
    ("seed", "the seeds are written one by one: feature_fraction_seed, extra_seed"),
    ("deterministic", "it is always on"),
    ("verbosity", "each hospital's connector decides what is logged"),
    (
        "first_metric_only is_provide_training_metric metric_freq",
        "there is one metric for early stopping, looked at after each round",
    ),
    (
        "task config data valid header label_column weight_column group_column ignore_column save_binary "
        "precise_float_parser parser_config_file output_model snapshot_freq saved_feature_importance_type "
        "convert_model convert_model_language",
        "it belongs to LightGBM's own command line; the study's dataset says what is read",
    ),
    (
        "output_result predict_raw_score predict_leaf_index predict_contrib predict_disable_shape_check "
        "start_iteration_predict num_iteration_predict pred_early_stop pred_early_stop_freq pred_early_stop_margin "
        "refit_decay_rate",
        "it belongs to predicting; give it to LightGBM when you use the model",
    ),
)
"""LightGBM's other parameters, and why a study may not set them."""

_OTHER_NAMES: Final = {
    "objective": "application app loss objective_type",
    "num_iterations": "num_iteration n_iter num_tree num_trees num_round num_rounds nrounds num_boost_round "
    "n_estimators max_iter",
    "learning_rate": "eta shrinkage_rate",
    "num_leaves": "num_leaf max_leaves max_leaf max_leaf_nodes",
    "tree_learner": "tree tree_type tree_learner_type",
    "num_threads": "num_thread nthread nthreads n_jobs",
    "device_type": "device",
    "seed": "random_seed random_state",
    "is_enable_sparse": "sparse is_sparse enable_sparse",
    "histogram_pool_size": "hist_pool_size",
    "two_round": "two_round_loading use_two_round_loading",
    "min_data_in_leaf": "min_data min_data_per_leaf min_child_samples min_samples_leaf",
    # gamma is not LightGBM's name but that of its neighbours.
    "min_gain_to_split": "min_split_gain gamma",
    "min_sum_hessian_in_leaf": "min_sum_hessian_per_leaf min_sum_hessian min_hessian min_child_weight",
    "bagging_fraction": "bagging sub_row subsample",
    "pos_bagging_fraction": "pos_bagging pos_sub_row pos_subsample",
    "neg_bagging_fraction": "neg_bagging neg_sub_row neg_subsample",
    "bagging_freq": "subsample_freq",
    "bagging_seed": "bagging_fraction_seed",
    "feature_fraction": "sub_feature colsample_bytree",
    "feature_fraction_bynode": "sub_feature_bynode colsample_bynode",
    "extra_trees": "extra_tree",
    "early_stopping_round": "early_stopping_rounds early_stopping n_iter_no_change",
    "max_delta_step": "max_tree_output max_leaf_output",
    "lambda_l1": "reg_alpha l1_regularization",
    "lambda_l2": "reg_lambda lambda l2_regularization",
    "linear_tree": "linear_trees",
    "drop_rate": "rate_drop",
    "top_k": "topk",
    "monotone_constraints": "mc monotone_constraint monotonic_cst",
    "monotone_constraints_method": "monotone_constraining_method mc_method",
    "monotone_penalty": "monotone_splits_penalty ms_penalty mc_penalty",
    "feature_contri": "feature_contrib fc fp feature_penalty",
    "forcedsplits_filename": "fs forced_splits_filename forced_splits_file forced_splits",
    "verbosity": "verbose",
    "input_model": "model_input model_in",
    "output_model": "model_output model_out",
    "snapshot_freq": "save_period",
    "max_bin": "max_bins",
    "bin_construct_sample_cnt": "subsample_for_bin",
    "data_random_seed": "data_seed",
    "enable_bundle": "is_enable_bundle bundle",
    "pre_partition": "is_pre_partition",
    "header": "has_header",
    "label_column": "label",
    "weight_column": "weight",
    "group_column": "group group_id query_column query query_id",
    "ignore_column": "ignore_feature blacklist",
    "categorical_feature": "cat_feature categorical_column cat_column categorical_features",
    "save_binary": "is_save_binary is_save_binary_file",
    "predict_raw_score": "is_predict_raw_score predict_rawscore raw_score",
    "predict_leaf_index": "is_predict_leaf_index leaf_index",
    "predict_contrib": "is_predict_contrib contrib",
    "output_result": "predict_result prediction_result predict_name prediction_name pred_name name_pred",
    "convert_model": "convert_model_file",
    "num_class": "num_classes",
    "is_unbalance": "unbalance unbalanced_sets",
    "metric": "metrics metric_types",
    "metric_freq": "output_freq",
    "is_provide_training_metric": "training_metric is_training_metric train_metric",
    "eval_at": "ndcg_eval_at ndcg_at map_eval_at map_at",
    "num_machines": "num_machine",
    "local_listen_port": "local_port port",
    "machine_list_filename": "machine_list_file machine_list mlist",
    "machines": "workers nodes",
    "boosting": "boosting_type boost",
    "task": "task_type",
    "config": "config_file",
    "data": "train train_data train_data_file data_filename",
    "valid": "test valid_data valid_data_file test_data test_data_file valid_filenames",
}

ALIASES: Final[dict[str, str]] = {alias: main for main, names in _OTHER_NAMES.items() for alias in names.split()}
"""Other names that LightGBM knows, and the main one, which is the only one that a study file may use."""


def said_of_parameter(name: str) -> tuple[str, str] | None:
    """Fact and remedy for a parameter of LightGBM that is not in `LightgbmParams`; None if LightGBM has none such."""
    main = ALIASES.get(name, name)
    if main in UNSUPPORTED:
        fact = "cannot be set" if main == name else f"is LightGBM's {main}, which cannot be set"
        return fact, f"Leave it out: {UNSUPPORTED[main]}."
    if main != name and main in LightgbmParams.model_fields:
        return f"is another name of {main}", f"Write `{main}`: a study file has one name for each parameter."
    return None
