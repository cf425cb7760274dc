"""Published figures, to stand beside ours.

Chen et al., "DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training", ICLR 2024. Accuracies in percent;
those of figures are read off the authors' slides, those of tables from the paper.
"""

from __future__ import annotations

FIG2 = {
    "FO": {730: 42.09, 3700: 60.47, 6670: 70.69, 9640: 76.64, 12610: 77.01},
    "CGE": {730: 41.65, 3700: 59.66, 6670: 70.04, 9640: 76.07, 12610: 76.95},
    "RGE": {730: 37.53, 3700: 50.06, 6670: 65.31, 9640: 70.05, 12610: 68.38},
}
"""Fig. 2: test accuracy of the simple CNN by method and number of parameters, q = d."""

RADII = (0.0, 0.25, 0.5, 0.75)
"""Radii of Tab. 2."""

TAB_2 = {
    "FO-DS": (89.33, 81.67, 68.87, 49.80),
    "ZO-AE-DS": (63.60, 52.80, 43.13, 32.73),
    "DeepZero": (86.02, 76.61, 61.80, 43.05),
}
"""Tab. 2: certified accuracy on ImageNet-10 by method, at :data:`RADII`."""

TAB_A1 = {
    "RGE": {
        730: (0.173, 0.152, 0.202, 0.149),
        3700: (1.43, 1.2, 2.11, 1.1),
        6670: (3.49, 2.93, 4.84, 2.68),
        9640: (6.74, 5.47, 8.3, 4.97),
        12610: (10.2, 8.86, 13.1, 8.05),
    },
    "CGE": {
        730: (0.0, 0.026, 0.21, 0.0312),
        3700: (0.0, 0.0907, 1.98, 0.124),
        6670: (0.0, 0.159, 4.53, 0.225),
        9640: (0.0, 0.246, 8.09, 0.336),
        12610: (0.0, 0.457, 14.6, 0.566),
    },
}
"""Table A1: seconds of directions, perturbation, inference and arithmetic in one iteration."""

PRUNED = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
"""Pruning ratios of Tables A2 and A3, in percent."""

TAB_A2 = {
    "random": (92.71, 92.63, 92.40, 91.94, 91.77, 91.41, 90.57, 89.35, 86.55, 82.51),
    "FO-GraSP": (92.64, 92.44, 92.34, 92.35, 92.07, 92.00, 91.63, 90.75, 88.55, 85.48),
    "ZO-GraSP": (92.74, 92.56, 92.58, 92.46, 92.09, 91.61, 91.48, 90.21, 88.08, 84.80),
}
"""Table A2: test accuracy of pruned ResNet-20 by method, at :data:`PRUNED`."""

TAB_A3 = {
    "random": (95.45, 95.51, 95.32, 95.34, 95.40, 95.09, 94.92, 94.58, 93.53, 92.13),
    "FO-GraSP": (95.44, 95.46, 95.53, 95.49, 95.44, 95.86, 95.99, 95.97, 95.91, 96.19),
    "ZO-GraSP": (95.43, 95.53, 95.53, 95.56, 95.50, 95.24, 95.36, 95.28, 94.94, 94.39),
}
"""Table A3: test accuracy of pruned ResNet-18 by method, at :data:`PRUNED`."""

FIG4 = {
    "DeepZero": {80: 86.94, 90: 86.46, 95: 84.26, 99: 73.37},
    "FO, sparse weights": {80: 88.59, 90: 86.25, 95: 82.95, 99: 68.22},
    "FO, sparse gradients": {80: 90.12, 90: 88.55, 95: 86.98, 99: 78.1},
}
"""Fig. 4: test accuracy of ResNet-20 by method and sparsity in percent (sparse gradients: slides only)."""

FIG4_DENSE = 92.85
"""Fig. 4: test accuracy of ResNet-20 trained densely by first-order SGD."""

TAB1 = {
    "DeepZero": {32: 57.7, 64: 64.1},
    "FA": {64: 46.5, 512: 45.4},
    "DFA": {64: 49.9, 512: 54.1},
    "Align-ada": {64: 49.9, 512: 58.0},
}
"""Table 1: test accuracy of the 8-layer CNN by method and width."""

TAB1_HOURS = {
    "DeepZero": {32: 4.34, 64: 28.15},
    "FA": {64: 0.36, 512: 3.79},
    "DFA": {64: 0.42, 512: 3.52},
    "Align-ada": {64: 0.48, 512: 4.59},
}
"""Table 1: hours of the same runs."""

FIG1D = {
    "Pattern Search": (62_006, 30.00),
    "DeepZero": (269_722, 86.46),
    "LG-FG-A": (13_074_674, 73.19),
    "FG-W": (13_074_674, 49.55),
    "Align-ada": (14_178_314, 58.00),
}
"""Fig. 1D: parameters and test accuracy by method. The forward-gradient figures are those of self-supervised training
with a linear readout (Ren et al., ICLR 2023, Table 4)."""

FIG6 = {"src": 0.180, "non": 0.153, "zo-sol": 0.119, "fo-sol": 0.074}
"""Fig. 6: mean absolute error over the five test flows by method, as read off the plot."""
