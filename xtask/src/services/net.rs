//! Loopback ports, and whether anybody answers.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// How long one question may take. A server on the same machine answers in far less.
const PATIENCE: Duration = Duration::from_secs(2);

/// A port that nobody has at this moment. Somebody may have it at the next: whoever starts a server on it looks again.
pub(super) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Whether somebody listens on a loopback port.
pub(super) fn is_taken(port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), PATIENCE).is_ok()
}

/// Whether `GET url + path` is answered with a 200. `url` is `http://host:port`.
pub(super) fn http_ok(url: &str, path: &str) -> bool {
    status_line(url, path).is_some_and(|line| line.split(' ').nth(1) == Some("200"))
}

fn status_line(url: &str, path: &str) -> Option<String> {
    let host = url.strip_prefix("http://")?.trim_end_matches('/');
    let address = host.to_socket_addrs().ok()?.next()?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
    let mut start = Vec::new();
    // "HTTP/1.1 200 " is 13 bytes; nothing after it matters.
    stream.take(13).read_to_end(&mut start).ok()?;
    String::from_utf8(start).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_free_until_somebody_takes_it() {
        let port = free_port().unwrap();
        assert!(!is_taken(port));
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(is_taken(port));
    }

    #[test]
    fn only_a_200_is_an_answer() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.1 503 Busy\r\n\r\n", false),
            ("HTTP/1.1 404 200 \r\n\r\n", false),
            ("hello", false),
            ("", false),
        ] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut asked = [0; 1_024];
                let _ = stream.read(&mut asked).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            });
            assert_eq!(http_ok(&url, "/health"), expected, "{answer:?}");
            server.join().unwrap();
            assert!(!http_ok(&url, "/health"), "nobody is there any more");
        }
        assert!(!http_ok("https://127.0.0.1:1", "/health"));
    }
}
