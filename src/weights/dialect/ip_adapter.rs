//! IP-Adapters as published in h94/IP-Adapter: the image projection, and key and value weights numbered like diffusers'
//! attention processors. These names are also the canonical ones.

use super::{Dialect, Mapped, number};
use crate::weights::Component;

/// `image_proj.*` and `ip_adapter.N.*`.
pub(super) const PUBLISHED: Dialect = Dialect {
    name: "IP-Adapter",
    detect: |names| names.has_prefix("image_proj.") && names.has_prefix("ip_adapter."),
    mapper: |_| Box::new(published),
};

fn published(name: &str) -> Mapped {
    let known = match name.split_once('.') {
        Some(("image_proj", _)) => true,
        Some(("ip_adapter", rest)) => matches!(
            number(rest),
            // Even numbers are self-attentions, which have no weights.
            Some((n, "to_k_ip.weight" | "to_v_ip.weight")) if n % 2 == 1
        ),
        _ => false,
    };
    if known { Mapped::keep(Component::IpAdapter, name) } else { Mapped::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cross_attentions_have_keys_and_values() {
        let is_known = |name| matches!(published(name), Mapped::To { .. });
        assert!(is_known("image_proj.layers.0.1.3.weight"));
        assert!(is_known("ip_adapter.31.to_v_ip.weight"));
        for name in ["ip_adapter.2.to_k_ip.weight", "ip_adapter.1.to_q_ip.weight", "ip_adapter.x"] {
            assert!(!is_known(name), "{name}");
        }
    }
}
