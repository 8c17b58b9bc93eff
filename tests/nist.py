"""Linear regression sets of NIST's Statistical Reference Datasets (StRD), www.itl.nist.gov/div898/strd/lls/lls.shtml.

With one response the canonical correlation of predictors and response is the root of R squared, which NIST certifies
to 15 digits. Data as printed there; they are in the public domain. `exact_r_squared` recomputes R squared in rational
numbers, so that a slip in a digit cannot pass for data.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

_NORRIS = """
0.2 0.1 337.4 338.8 118.2 118.1 884.6 888.0 10.1 9.2 226.5 228.1 666.3 668.5 996.3 998.5 448.6 449.1 777.0 778.9
558.2 559.2 0.4 0.3 0.6 0.1 775.5 778.1 666.9 668.8 338.0 339.3 447.5 448.9 11.6 10.8 556.0 557.7 228.1 228.3
995.8 998.0 887.6 888.8 120.2 119.6 0.3 0.3 0.3 0.6 556.8 557.6 339.1 339.3 887.2 888.0 999.0 998.5 779.0 778.9
11.1 10.2 118.3 117.6 229.2 228.9 669.1 668.4 448.9 449.2 0.5 0.2
"""  # x and y in turn

_PONTIUS = """
.11019 .21956 .32949 .43899 .54803 .65694 .76562 .87487 .98292 1.09146 1.20001 1.30822 1.41599 1.52399 1.63194
1.73947 1.84646 1.95392 2.06128 2.16844 .11052 .22018 .32939 .43886 .54798 .65739 .76596 .87474 .98300 1.09150
1.20004 1.30818 1.41613 1.52408 1.63159 1.73965 1.84696 1.95445 2.06177 2.16829
"""  # y; x is 150000, 300000, ..., 3000000, twice

_LONGLEY = """
60323 83.0 234289 2356 1590 107608 1947
61122 88.5 259426 2325 1456 108632 1948
60171 88.2 258054 3682 1616 109773 1949
61187 89.5 284599 3351 1650 110929 1950
63221 96.2 328975 2099 3099 112075 1951
63639 98.1 346999 1932 3594 113270 1952
64989 99.0 365385 1870 3547 115094 1953
63761 100.0 363112 3578 3350 116219 1954
66019 101.2 397469 2904 3048 117388 1955
67857 104.6 419180 2822 2857 118734 1956
68169 108.4 442769 2936 2798 120445 1957
66513 110.8 444546 4681 2637 121950 1958
68655 112.6 482704 3813 2552 123366 1959
69564 114.2 502601 3931 2514 125368 1960
69331 115.7 518173 4806 2572 127852 1961
70551 116.9 554894 4007 2827 130081 1962
"""  # y and six predictors

_FILIP = """
0.8116 -6.860120914 0.9072 -4.324130045 0.9052 -4.358625055 0.9039 -4.358426747 0.8053 -6.955852379 0.8377
-6.661145254 0.8667 -6.355462942 0.8809 -6.118102026 0.7975 -7.115148017 0.8162 -6.815308569 0.8515 -6.519993057
0.8766 -6.204119983 0.8885 -5.853871964 0.8859 -6.109523091 0.8959 -5.79832982 0.8913 -5.482672118 0.8959
-5.171791386 0.8971 -4.851705903 0.9021 -4.517126416 0.909 -4.143573228 0.9139 -3.709075441 0.9199 -3.499489089
0.8692 -6.300769497 0.8872 -5.953504836 0.89 -5.642065153 0.891 -5.031376979 0.8977 -4.680685696 0.9035
-4.329846955 0.9078 -3.928486195 0.7675 -8.56735134 0.7705 -8.363211311 0.7713 -8.107682739 0.7736 -7.823908741
0.7775 -7.522878745 0.7841 -7.218819279 0.7971 -6.920818754 0.8329 -6.628932138 0.8641 -6.323946875 0.8804
-5.991399828 0.7668 -8.781464495 0.7633 -8.663140179 0.7678 -8.473531488 0.7697 -8.247337057 0.77 -7.971428747
0.7749 -7.676129393 0.7796 -7.352812702 0.7897 -7.072065318 0.8131 -6.774174009 0.8498 -6.478861916 0.8741
-6.159517513 0.8061 -6.835647144 0.846 -6.53165267 0.8751 -6.224098421 0.8856 -5.910094889 0.8919 -5.598599459
0.8934 -5.290645224 0.894 -4.974284616 0.8957 -4.64454848 0.9047 -4.290560426 0.9129 -3.885055584 0.9209
-3.408378962 0.9219 -3.13200249 0.7739 -8.726767166 0.7681 -8.66695597 0.7665 -8.511026475 0.7703 -8.165388579
0.7702 -7.886056648 0.7761 -7.588043762 0.7809 -7.283412422 0.7961 -6.995678626 0.8253 -6.691862621 0.8602
-6.392544977 0.8809 -6.067374056 0.8301 -6.684029655 0.8664 -6.378719832 0.8834 -6.065855188 0.8898 -5.752272167
0.8964 -5.132414673 0.8963 -4.811352704 0.9074 -4.098269308 0.9119 -3.66174277 0.9228 -3.2644011
"""  # y and x in turn

_WAMPLER = {  # y; x is 0, 1, ..., 20
    "Wampler1": """
1 6 63 364 1365 3906 9331 19608 37449 66430 111111 177156 271453 402234 579195 813616 1118481 1508598 2000719
2613660 3368421
""",
    "Wampler2": """
1.00000 1.11111 1.24992 1.42753 1.65984 1.96875 2.38336 2.94117 3.68928 4.68559 6.00000 7.71561 9.92992 12.75603
16.32384 20.78125 26.29536 33.05367 41.26528 51.16209 63.00000
""",
    "Wampler3": """
760 -2042 2111 -1684 3888 1858 11379 17560 39287 64382 113159 175108 273291 400186 581243 811568 1121004 1506550
2002767 2611612 3369180
""",
    "Wampler4": """
75901 -204794 204863 -204436 253665 -200894 214131 -185192 221249 -138370 315911 -27644 455253 197434 783995
608816 1370781 1303798 2205519 2408860 3444321
""",
    "Wampler5": """
7590001 -20479994 20480063 -20479636 25231365 -20476094 20489331 -20460392 18417449 -20413570 20591111 -20302844
18651453 -20077766 21059195 -19666384 26348481 -18971402 22480719 -17866340 10958421
""",
}

# R squared as certified.
CERTIFIED = {
    "Norris": "0.999993745883712",
    "Pontius": "0.999999900178537",
    "Longley": "0.995479004577296",
    "Wampler1": "1.00000000000000",
    "Wampler2": "1.00000000000000",
    "Wampler3": "0.999995559025820",
    "Wampler4": "0.957478440825662",
    "Wampler5": "0.00224668921574940",
    "Filip": "0.996727416185620",
}


def _powers(x: list[Fraction], degree: int) -> list[list[Fraction]]:
    return [[value**power for power in range(1, degree + 1)] for value in x]


def exact(name: str) -> tuple[list[list[Fraction]], list[Fraction]]:
    """Predictors (without the constant) and response, as printed."""
    if name == "Norris":
        numbers = [Fraction(text) for text in _NORRIS.split()]
        return _powers(numbers[::2], 1), numbers[1::2]
    if name == "Pontius":
        return _powers([Fraction(150000 * i) for _ in range(2) for i in range(1, 21)], 2), _fractions(_PONTIUS)
    if name == "Longley":
        rows = [_fractions(line) for line in _LONGLEY.strip().splitlines()]
        return [row[1:] for row in rows], [row[0] for row in rows]
    if name == "Filip":
        numbers = _fractions(_FILIP)
        return _powers(numbers[1::2], 10), numbers[::2]
    return _powers([Fraction(i) for i in range(21)], 5), _fractions(_WAMPLER[name])


def _fractions(text: str) -> list[Fraction]:
    return [Fraction(word) for word in text.split()]


def rounded(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Predictors (n, p) and response (n, 1), every number rounded once to float64."""
    x, y = exact(name)
    return np.array([[float(value) for value in row] for row in x]), np.array([[float(value)] for value in y])


def exact_r_squared(x, y) -> Fraction:
    """R squared of y on the columns of x and a constant, of rational numbers or floats taken as they are."""
    x, y = [[Fraction(value) for value in row] for row in x], [Fraction(value) for value in y]
    means = [sum(column) / len(y) for column in zip(*x, strict=True)]
    mean = sum(y) / len(y)
    rows = [[a - b for a, b in zip(row, means, strict=True)] for row in x]
    response = [value - mean for value in y]
    columns = [*zip(*rows, strict=True), response]
    # Elimination on the matrix of products, bordered by the response: what is left in the corner is not explained.
    m = [[sum(a * b for a, b in zip(p, q, strict=True)) for q in columns] for p in columns]
    total = m[-1][-1]
    for k in range(len(m) - 1):
        for i in range(k + 1, len(m)):
            factor = m[i][k] / m[k][k]
            m[i] = [a - factor * b for a, b in zip(m[i], m[k], strict=True)]
    return 1 - m[-1][-1] / total
