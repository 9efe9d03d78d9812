"""Every notebook runs on the built-in data, and is stored without outputs."""

import jax
import nbformat
import pytest
from nbclient import NotebookClient
from places import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "explore_codebook",
        "explore_masked_sampling",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean_and_opens_in_colab(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    home = "colab.research.google.com/github/handjax/handjax/blob/main"
    assert f"{home}/notebooks/{path.name}" in notebook.cells[0].source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            # Logic lives in the package, where it is tested.
            assert "def " not in cell.source and "class " not in cell.source


def run(path, folder):
    """Execute a notebook in a folder; returns how many pictures it shows."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=500, resources=resources).execute()
    return sum(
        output.output_type == "display_data" and "image/png" in output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


@pytest.fixture
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HANDJAX_NOTEBOOK_STEPS", "3")
    monkeypatch.setenv("HANDJAX_NOTEBOOK_HANDS", "32")
    monkeypatch.setenv("HANDJAX_DATA", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return monkeypatch


@pytest.fixture
def workdir(tmp_path):
    """An untrained tokenizer of the smallest size, saved as training saves it."""
    from handjax import models
    from handjax.checkpoints import store
    from handjax.checkpoints.workdir import build_model
    from handjax.config import schema
    from handjax.config.files import load_config
    from handjax.data import run_data
    from handjax.family import hand_constants
    from handjax.mano import model_files

    values = load_config("configs/tokenhand.py:smoke")
    file = model_files.load("open")
    model = build_model(models.load(values.family), values)
    hand = hand_constants.hand_constants(file)

    def without_image(model, batch):
        """`init_all` less the image model, which compiles for a minute."""
        for name in ("joint_regressor", "faces"):
            model.put_variable(
                "constants", name, jax.numpy.asarray(getattr(hand, name))
            )
        model.tokenizer.set_template(hand.v_template)
        return model.reconstruct(batch.vertices)[0]

    example = run_data.example_batch(values, file)
    variables = jax.jit(lambda rng: model.init(rng, example, method=without_image))(
        jax.random.key(0)
    )
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(schema.to_json(values))
    saved = store.Checkpoints(path, "tokenizer")
    saved.save(1, variables, {"step": jax.numpy.zeros(())}, {})
    saved.wait()
    saved.close()
    return path


# ZMQ and its event loop warn about their own closing.
@pytest.mark.filterwarnings("ignore")
def test_codebook_notebook_runs_on_a_workdir(environment, workdir, tmp_path):
    environment.setenv("HANDJAX_WORKDIR", str(workdir))
    assert run(ROOT / "notebooks" / "explore_codebook.ipynb", tmp_path) == 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_codebook_notebook_trains_a_tokenizer_of_its_own(environment, tmp_path):
    assert run(ROOT / "notebooks" / "explore_codebook.ipynb", tmp_path) == 10


@pytest.fixture
def sampling_workdir(tmp_path):
    """An untrained MMHMR of the smallest size, its numbers drawn without compiling."""
    import numpy as np

    from handjax import models
    from handjax.checkpoints import store
    from handjax.checkpoints.workdir import build_model
    from handjax.config import schema
    from handjax.config.files import load_config
    from handjax.data import run_data
    from handjax.family import hand_constants
    from handjax.mano import model_files
    from handjax.mano.hand_model import HandModel
    from handjax.nn import mano_head

    values = load_config("configs/mmhmr.py:smoke")
    with values.unlocked():
        values.data.num_train, values.data.num_test = 8, 4
    file = model_files.load("open")
    model = build_model(models.load(values.family), values)
    hand, example = (
        hand_constants.hand_constants(file),
        run_data.example_batch(values, file),
    )
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), example, hand, method="init_all")
    )
    rng = np.random.default_rng(0)

    def draw(leaf):
        if leaf.dtype == bool:
            return np.ones(leaf.shape, bool)
        if leaf.ndim < 2:  # scales, biases and statistics
            return np.ones(leaf.shape, np.float32)
        return np.float32(rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape))

    variables = jax.tree.map(
        draw, {k: v for k, v in shapes.items() if k != "constants"}
    )
    arrays = hand.arrays()
    mean = jax.jit(lambda hand: mano_head.mean_parameters(HandModel(**hand)))(arrays)
    variables["constants"] = {
        "hand": arrays,
        "mean": mean._asdict(),
        "faces": arrays["faces"],
    }
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(schema.to_json(values))
    saved = store.Checkpoints(path, "mesh")
    saved.save(
        1, jax.tree.map(jax.numpy.asarray, variables), {"step": jax.numpy.zeros(())}, {}
    )
    saved.wait()
    saved.close()
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sampling_notebook_runs_on_a_workdir(environment, sampling_workdir, tmp_path):
    environment.setenv("HANDJAX_WORKDIR", str(sampling_workdir))
    notebook = ROOT / "notebooks" / "explore_masked_sampling.ipynb"
    assert run(notebook, tmp_path) == 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sampling_notebook_trains_a_model_of_its_own(environment, tmp_path):
    notebook = ROOT / "notebooks" / "explore_masked_sampling.ipynb"
    assert run(notebook, tmp_path) == 7
