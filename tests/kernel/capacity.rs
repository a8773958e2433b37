//! A service drops its first request when every place of every member is taken, no
//! earlier: the sum of backlog + 1 over all members.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use overspill::{Policy, Service};

use world::{address, wait_until};

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&address, Duration::from_millis(500))
}

fn total_queued(service: &Service) -> u32 {
    service.status().unwrap().members.iter().map(|member| member.queued).sum()
}

#[test]
fn four_members_on_four_addresses() {
    world::enter();
    let addresses: Vec<SocketAddr> =
        (0..4).map(|n| SocketAddr::new(address(false, n), 8080)).collect();
    let (service, listeners): (Service, Vec<TcpListener>) = Service::builder("web")
        .policy(Policy::NextAvailable)
        .backlog(3)
        .listen(addresses.iter().copied())
        .unwrap();
    let clients: Vec<TcpStream> = (0..16).map(|_| connect(addresses[0]).unwrap()).collect();
    wait_until("all are queued", || total_queued(&service) == 16);
    connect(addresses[0]).unwrap_err();
    let status = service.status().unwrap();
    println!("{status:#?}");
    assert_eq!(status.requests.placed, 4);
    assert_eq!(status.requests.redirected, 12);
    assert_eq!(status.requests.special, 12);
    assert_eq!(status.requests.dropped, 1);
    for listener in &listeners {
        assert_eq!(listener.accept().unwrap().0.local_addr().unwrap(), addresses[0]);
    }
    drop(clients);
    service.remove().unwrap();
    assert!(!std::path::Path::new("/sys/fs/bpf/overspill").exists());
}
