"""Command line options that make every part of a real run small enough to compile quickly."""

MODEL = (
    "--gin.model_config.width=16",
    "--gin.model_config.ffn_width=32",
    "--gin.model_config.num_heads=2",
    "--gin.model_config.encoder_layers=1",
    "--gin.model_config.decoder_layers=1",
    "--gin.model_config.resnet_width=4",
)
"""Of any run."""

SCENES = (
    *MODEL,
    "--gin.model_config.code_image_size=32",
    "--gin.scenes_settings.image_size=64",
    "--gin.scenes_settings.code_image_size=32",
    "--gin.pairs/Stream.batch_size=4",
    "--gin.pairs/Stream.image_size=64",
    "--gin.images/Stream.batch_size=4",
    "--gin.images/Stream.image_size=64",
    "--gin.images/Stream.task_feature_lengths={'inputs': 16, 'targets': 40}",
    "--gin.text/Stream.batch_size=2",
)
"""Of `gin_configs/runs/pretrain_scenes.gin`."""

SCENES_DOWNSTREAM = (
    *MODEL,
    "--gin.model_config.code_image_size=32",
    "--gin.ScenesDownstreamSettings.image_size=64",
    "--gin.ScenesDownstreamSettings.code_image_size=32",
    "--gin.ScenesDownstreamSettings.num_train=8",
    "--gin.BATCH_SIZE=4",
)
"""Of `gin_configs/finetune_scenes`, but for the sizes that each of them has alone."""
