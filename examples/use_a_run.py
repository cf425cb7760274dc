r"""
Use a trained network, in three lines
=====================================

The folder of a run holds all that using it takes: the network, its weights, what its inputs are and what was done to
them, the names of the classes. A fresh process loads it in three lines, and other programs get an ONNX file.
"""

# %%
# A trained network
# -----------------
# The iris flowers, as a table: four columns of numbers and one of names. Every sixth flower is kept for later.

import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime
from sklearn.datasets import load_iris

import deepzero as dz

work = Path(tempfile.mkdtemp())
iris = load_iris()
rows = [",".join([*map(str, x), iris.target_names[y]]) for x, y in zip(iris.data, iris.target, strict=True)]
head = "sepal_length,sepal_width,petal_length,petal_width,species"
(work / "known.csv").write_text("\n".join([head, *(row for k, row in enumerate(rows) if k % 6)]))
(work / "new.csv").write_text("\n".join([head, *rows[::6]]))


def run_python(*words):
    """A fresh process of Python in the folder ``work``; what it prints."""
    done = subprocess.run([sys.executable, *words], cwd=work, capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr)
    done.check_returncode()
    return done.stdout


run_python("-m", "deepzero", "train", "--data", "known.csv", "--target", "species", "--out", "run", "--quiet")

# %%
# What you write
# --------------
# In a process of its own, that knows nothing but the folder. ``predict`` takes a table, a data frame or columns by
# name, and prepares them as in training.

USE = """
import deepzero as dz
# [your lines]
run = dz.load_run("run")
print(run.predict("new.csv"))
run.export("iris.onnx")
# [end]
"""
answer = run_python("-c", USE)

# %%
# Did it work?
# ------------
# The flowers that were kept for later are 25 of three kinds.

run = dz.load_run(work / "run")
print(run)
predicted = run.predict(work / "new.csv")
right = [name == row.rsplit(",", 1)[1] for name, row in zip(predicted, rows[::6], strict=True)]
print(f"{sum(right)} of {len(right)} right")
print(run.classes, "for the first flower:", run.predict_proba(work / "new.csv")[0])
assert answer.strip() == str(predicted)
assert sum(right) > 20

# %%
# And the ONNX file gives what the network gives. It takes what ``run.inputs`` returns: prepared inputs.

session = onnxruntime.InferenceSession(work / "iris.onnx")
prepared = run.inputs(work / "new.csv")
(outputs,) = session.run(None, {"input": prepared.numpy()})
difference = abs(outputs - run.outputs(work / "new.csv").numpy()).max()
print(f"ONNX: shape {outputs.shape}, largest difference {difference:.1e}")
assert difference < 1e-4
