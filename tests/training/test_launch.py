from handjax.config.files import load_config
from handjax.training import launch


def test_the_last_checkpoint_is_of_the_last_stage_that_has_one(tmp_path):
    for stage, step in (("tokenizer", 6), ("mesh", 3)):
        (tmp_path / "checkpoints" / stage / str(step)).mkdir(parents=True)
    config = load_config("tokenhand:smoke")
    assert "mesh 3." in launch._last_checkpoint(str(tmp_path), config)
