"""SMILE as it was published: every quantity a parameter, fitted by block coordinate ascent.

With X_s scaled to unit mean square, the composite objective is

    F = - sum_s 1/(2 p_s) sum_i |x_i^s - B_s u_i|^2                                     (factor)
        + w [ sum_ik r_ik (log pi_ik + log C_d(kappa) + kappa mu_k'u_i - log r_ik)      (mixture)
              + w_s (sum_(ij) sum_kl r_ik r_jl log P(y_ij | a + b mu_k'mu_l) - ridge)   (similarity)
              + w_r (sum_(ij) log P(y_ij | a_R + u_i' W u_j) - ridge) ]                 (relatedness)

over B_s, unit u_i and mu_k, r on the simplex, a, b, a_R and W. The published model has the four terms with a
weight each; the scaling of the sources is ours, so that a weight means the same whatever the unit of a source.

kappa is held, and chosen by validation. It cannot be fitted here: F is unbounded in (u, mu, kappa), because
u_i -> mu_(z_i) lets kappa -> infinity. A fit that tried ended at a kappa of 10^5 where the truth was 50, and the
accuracy of its embedding fell from .74 to .42. The default fit (`smile.fit_smile`) has no such limit.

Source: Zhang, Duan, Zhou, Xia and Cai, Spherical Mixture Integration for Latent Embedding Alignment across
Multi-Source Feature Spaces, arXiv 2605.08637.
"""

from coordinator.model.plugin.fit import fit_plug_in

__all__ = ["fit_plug_in"]
