"""TEMPORARY stand-in while the real one is being written (lead)."""
from deepzero.evaluators.sequential import SequentialEvaluator


class PropagationEvaluator(SequentialEvaluator):
    pass
