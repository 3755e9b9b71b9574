"""The conductivity from the heat flux' autocorrelation: kappa = 1 / (3 k_B T^2 V) * integral of <J(0) J(t)> over t.

J is the extensive flux of ``compute heat/flux``, eV angstrom/ps.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

BOLTZMANN = 8.617333262e-5  # eV/K
WATT_PER_METRE_KELVIN = 1602.176634  # 1 eV/(ps angstrom K)
OUT = Path(__file__).resolve().parent / "out"


def conductivity(correlation: np.ndarray, step: float, temperature: float, volume: float) -> np.ndarray:
    """kappa (W/m/K) as a function of the upper limit of the integral.

    Args:
        correlation: <J(0) J(t)> for each component at equidistant times, (eV angstrom/ps)^2, [times, 3].
        step: between two times, ps.
        temperature: K.
        volume: angstrom^3.
    """
    mean = correlation.mean(1)
    integral = np.concatenate([[0.0], np.cumsum(0.5 * (mean[1:] + mean[:-1]) * step)])
    return WATT_PER_METRE_KELVIN * integral / (BOLTZMANN * temperature**2 * volume)


def main() -> None:
    words = (OUT / "system.dat").read_text().split()
    volume, step = float(words[1]), float(words[3])
    temperature = np.loadtxt(OUT / "temperature.dat", ndmin=2)[-1, 1]
    table = np.loadtxt(OUT / "hfacf.dat", skiprows=4)
    times, correlation = step * (table[:, 0] - 1), table[:, 3:6]
    kappa = conductivity(correlation, step, temperature, volume)
    plateau = kappa[times > 0.5 * times[-1]]
    print(
        f"{temperature:.1f} K, {table[0, 2]:.0f} samples: kappa = {plateau.mean():.3f} W/m/K "
        f"(+- {plateau.std():.3f} along the plateau; experiment at 86 K: 0.13)"
    )

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for component, name in enumerate("xyz"):
        axes[0].plot(
            times, correlation[:, component] / correlation[0, component], lw=0.8, alpha=0.6, label=f"J$_{name}$"
        )
    axes[0].plot(times, correlation.mean(1) / correlation[0].mean(), "k", label="mean")
    axes[0].set(xlabel="t / ps", ylabel="⟨J(0) J(t)⟩ / ⟨J²⟩")
    axes[0].legend(frameon=False)
    axes[1].plot(times, kappa, "k")
    axes[1].axhline(0.13, ls=":", color="tab:red", label="experiment")
    axes[1].set(xlabel="upper limit / ps", ylabel="κ / W m⁻¹ K⁻¹")
    axes[1].legend(frameon=False)
    figure.savefig(OUT / "thermal_conductivity.png", dpi=150)


if __name__ == "__main__":
    main()
