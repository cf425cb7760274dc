import gc

from deepzero.cli import main
from deepzero.process_memory import CollectAgain, no_collection

TINY = ["--estimator", "fo", "--sparsity", "0", "--limit", "64", "--batch-size", "32", "--epochs", "1"]


def test_nothing_is_collected_until_the_first_record():
    assert gc.isenabled()
    with no_collection():
        assert not gc.isenabled()
        sink = CollectAgain()
        sink.write({"kind": "step"})
        assert gc.isenabled()
        sink.close()
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


def test_a_training_collects_from_its_first_step_on(tmp_path, monkeypatch):
    seen = []
    write = CollectAgain.write

    def note(self, record):
        seen.append(gc.isenabled())
        write(self, record)
        seen.append(gc.isenabled())

    monkeypatch.setattr(CollectAgain, "write", note)
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "--quiet"]) == 0
    assert seen[:4] == [False, True, True, True]
    assert gc.isenabled()
    assert main(["train", "digits", "--sparsity", "2"]) == 2
    assert gc.isenabled()
