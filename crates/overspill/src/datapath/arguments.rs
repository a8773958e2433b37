//! How user space calls the programs that it runs (`bpf/contract.h`).

use zerocopy::IntoBytes as _;

/// The verdict of a program that has done what was asked.
pub(super) const SK_PASS: u32 = 1;

/// Arguments of the programs that user space runs (`bpf/contract.h`).
#[derive(Default)]
pub(super) struct Arguments {
    pub(super) service: u32,
    pub(super) position: u32,
    pub(super) wide: u64,
    pub(super) port: u16,
}

impl Arguments {
    /// Writes them into the `struct bpf_sk_lookup` of a TCP request over IPv6.
    pub(super) fn context(&self) -> Vec<u8> {
        let mut words = [0_u32; 18];
        words[2] = 10; // family: AF_INET6
        words[3] = 6; // protocol: IPPROTO_TCP
        let wide = [self.wide & u64::from(u32::MAX), self.wide >> 32];
        let [low, high] = wide.map(|half| u32::try_from(half).expect("a half"));
        words[5..7].copy_from_slice(&[low, high]); // remote_ip6
        words[11..13].copy_from_slice(&[self.service, self.position]); // local_ip6
        words[15] = self.port.into(); // local_port
        words.as_bytes().to_vec()
    }
}
