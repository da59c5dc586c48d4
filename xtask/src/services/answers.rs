//! Whether a PostgreSQL, a Redis or a server of HTTP/2 answers, in the few words of their protocols that this takes. Also compiled into the
//! cross-crate tests, which start servers of their own.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// How long one question may take. A server on the same machine answers in far less.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest message of a PostgreSQL that is listened to.
const LONGEST: usize = 64 << 10;

/// Whether a PostgreSQL without a password answers `query`, in its database `postgres`, with at least one row.
pub(crate) fn postgres(url: &str, query: &str) -> bool {
    ask_postgres(url, query).unwrap_or(false)
}

/// Whether a Redis answers `command` with a line that begins with `start`.
pub(crate) fn redis(url: &str, command: &str, start: &str) -> bool {
    ask_redis(url, command).is_ok_and(|line| line.starts_with(start))
}

/// Whether a server of HTTP/2, such as one of gRPC, greets who connects.
#[allow(dead_code, reason = "the tests that share this file start no such server")]
pub(crate) fn http2(url: &str) -> bool {
    ask_http2(url).unwrap_or(false)
}

fn ask_http2(url: &str) -> io::Result<bool> {
    let mut stream = connect(url)?;
    // What every client says first, and an empty frame of settings.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    // A server's first frame is its settings, of no stream.
    Ok(head[3..] == [4, 0, 0, 0, 0, 0])
}

fn ask_postgres(url: &str, query: &str) -> io::Result<bool> {
    let mut stream = connect(url)?;
    // Protocol 3.0, then pairs of names and values, then a zero.
    let mut hello = 196_608_u32.to_be_bytes().to_vec();
    hello.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
    stream.write_all(&framed(&hello)?)?;
    // `Z`: ready for a query. `E`: an error, which is no answer.
    while !matches!(message(&mut stream)?, b'Z') {}
    stream.write_all(&[b"Q", framed(format!("{query}\0").as_bytes())?.as_slice()].concat())?;
    let mut rows = 0;
    loop {
        match message(&mut stream)? {
            b'D' => rows += 1,
            b'Z' => break,
            _ => {}
        }
    }
    // `X`: farewell, so that its log has no complaint.
    stream.write_all(b"X\0\0\0\x04")?;
    Ok(rows > 0)
}

/// The kind of the next message.
fn message(stream: &mut TcpStream) -> io::Result<u8> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_be_bytes(length) as usize;
    let body = length.checked_sub(4).filter(|body| *body <= LONGEST).ok_or(io::ErrorKind::InvalidData)?;
    stream.read_exact(&mut vec![0; body])?;
    // `R` with anything but a zero asks for a password; what follows would be waited for in vain, and no more than `PATIENCE`.
    if kind == b'E' { Err(io::ErrorKind::Other.into()) } else { Ok(kind) }
}

/// A body behind its length, which counts itself.
fn framed(body: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(body.len() + 4).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok([&length.to_be_bytes(), body].concat())
}

fn ask_redis(url: &str, command: &str) -> io::Result<String> {
    let mut stream = connect(url)?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST as u64)).read_line(&mut line)?;
    Ok(line)
}

fn connect(url: &str) -> io::Result<TcpStream> {
    let (_, place) = url.split_once("://").ok_or(io::ErrorKind::InvalidInput)?;
    let place = place.split(['/', '?']).next().unwrap_or_default();
    let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
    let address = place.to_socket_addrs()?.next().ok_or(io::ErrorKind::InvalidInput)?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that says one thing to each of `turns` it hears, and then ends.
    fn says(turns: Vec<Vec<u8>>) -> (String, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for turn in turns {
                let mut heard = [0; 1_024];
                let _ = stream.read(&mut heard).unwrap();
                let _ = stream.write_all(&turn);
            }
        });
        (at.to_string(), serving)
    }

    fn said(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind], framed(body).unwrap().as_slice()].concat()
    }

    #[test]
    fn a_postgres_answers_with_a_row_or_not_at_all() {
        let ready = || [said(b'R', &[0; 4]), said(b'S', b"a\0b\0"), said(b'Z', b"I")].concat();
        let row = || [said(b'D', b""), said(b'C', b"SELECT 1\0"), said(b'Z', b"I")].concat();
        let no_row = || [said(b'C', b"SELECT 0\0"), said(b'Z', b"I")].concat();
        let error = || said(b'E', b"SFATAL\0\0");
        for (turns, expected) in [
            (vec![ready(), row()], true),
            (vec![ready(), no_row()], false),
            (vec![error()], false),
            (vec![ready(), error()], false),
            // What fails at its end was not done.
            (vec![ready(), [said(b'D', b""), error(), said(b'Z', b"I")].concat()], false),
            (vec![b"Z\0\0\0\x03".to_vec()], false),
            (vec![b"D\xff\xff\xff\xff".to_vec()], false),
            (vec![b"HTTP/1.1 400 Bad\r\n".to_vec()], false),
        ] {
            let (at, serving) = says(turns.clone());
            assert_eq!(postgres(&format!("postgres://me@{at}/x?y=z"), "SELECT 1"), expected, "{turns:?}");
            let _ = serving.join();
        }
        assert!(!postgres("postgres://me@127.0.0.1:1/x", "SELECT 1") && !postgres("nonsense", "SELECT 1"));
    }

    #[test]
    fn a_server_of_http2_begins_with_its_settings() {
        for (hello, expected) in [
            (&b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\x10\0"[..], true),
            (b"\0\0\x08\x07\0\0\0\0\0", false),
            (b"HTTP/1.1 400 Bad\r\n", false),
            (b"", false),
        ] {
            let (at, serving) = says(vec![hello.to_vec()]);
            assert_eq!(http2(&format!("http://{at}")), expected, "{hello:?}");
            serving.join().unwrap();
        }
        assert!(!http2("http://127.0.0.1:1"));
    }

    #[test]
    fn a_redis_answers_with_the_right_word() {
        for (line, expected) in [("+PONG\r\n", true), ("-LOADING wait\r\n", false), ("", false)] {
            let (at, serving) = says(vec![line.as_bytes().to_vec()]);
            assert_eq!(redis(&format!("redis://{at}"), "PING", "+PONG"), expected, "{line:?}");
            serving.join().unwrap();
        }
        assert!(!redis("redis://127.0.0.1:1/0", "PING", "+PONG"));
    }
}
