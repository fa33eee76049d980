//! A proxy before an HTTP server, on loopback, that does what networks and overloaded servers do.
//!
//! Promises: requests pass unchanged, one after the other on each connection, unless a fault was ordered for one; faults
//! are used up in the order in which they were ordered, each by the first request of its method that comes; every
//! request is counted by its method. Only HTTP/1.1 without trailers, which is all that the tests speak.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// What is to happen to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: it takes the place of a request that is to pass.
    None,
    /// It is refused with a status, and with headers (each ending in `\r\n`), and never reaches the server.
    Refused(u16, &'static str),
    /// The connection breaks before the server is reached.
    Broken,
    /// The server does it; the connection breaks instead of answering.
    AnswerLost,
    /// The server does it; the answer is a status instead.
    AnswerReplaced(u16),
    /// The answer's body breaks off after so many bytes.
    Cut(u64),
    /// The server does it, twice; the second answer is passed on.
    Twice,
    /// Neither the server nor the client hears anything until the proxy ends or the client goes away.
    Silence,
    /// The server is not asked; the answer is that there is no such object.
    Absent,
    /// The answer's body comes byte by byte, with a pause behind each.
    Trickle(Duration),
    /// The answer's head comes, and nothing of its body, until the proxy ends or the client goes away.
    SilentBody,
    /// The request is held back until the returned gate of [`FaultProxy::order_held`] is opened.
    Held(Arc<Gate>),
}

/// Holds a request back until it is opened.
#[derive(Debug, Default)]
pub struct Gate {
    /// Whether a request has come to it, and whether it is open.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl PartialEq for Gate {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Gate {}

impl Gate {
    /// Lets the request pass.
    pub fn open(&self) {
        self.state().1 = true;
        self.changed.notify_all();
    }

    /// Waits until a request is held here.
    pub fn wait_until_reached(&self) {
        let reached = self.changed.wait_while(self.state(), |state| !state.0);
        drop(reached);
    }

    fn hold(&self) {
        self.state().0 = true;
        self.changed.notify_all();
        let open = self.changed.wait_while(self.state(), |state| !state.1);
        drop(open);
    }

    fn state(&self) -> MutexGuard<'_, (bool, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How S3 says that there is no such object.
const NO_SUCH_KEY: &[u8] =
    b"HTTP/1.1 404 Not Found\r\nContent-Type: application/xml\r\nContent-Length: 37\r\n\r\n\
      <Error><Code>NoSuchKey</Code></Error>";

/// A request to the proxy itself.
const ASKS_WHAT_PASSED: &str = "GET /-/passed ";

/// What passed, by method.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passed {
    /// Requests.
    pub requests: BTreeMap<String, u64>,
    /// The most requests that were under way at once.
    pub most_at_once: u64,
}

#[derive(Default)]
struct State {
    faults: Mutex<VecDeque<(&'static str, Fault)>>,
    passed: Mutex<(Passed, u64)>,
    heads: Mutex<BTreeMap<String, String>>,
    latency: Mutex<Duration>,
    ended: AtomicBool,
}

/// A running proxy.
pub struct FaultProxy {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// Starts a proxy before `server`.
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        let accept = move || {
            for client in listener.incoming() {
                if shared.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                let shared = Arc::clone(&shared);
                // It ends with its client's connection.
                thread::Builder::new()
                    .name("proxy connection".to_owned())
                    .spawn(move || drop(serve(&client, server, &shared)))
                    .expect("a thread can be started");
            }
        };
        let acceptor = thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(accept)
            .expect("a thread can be started");
        FaultProxy {
            address,
            state,
            acceptor: Some(acceptor),
        }
    }

    /// Orders a fault for the next request of this method that none is ordered for.
    pub fn order(&self, method: &'static str, fault: Fault) {
        lock(&self.state.faults).push_back((method, fault));
    }

    /// Orders a fault for the request of this method that comes after `passing` others.
    pub fn order_after(&self, passing: usize, method: &'static str, fault: Fault) {
        for _ in 0..passing {
            self.order(method, Fault::None);
        }
        self.order(method, fault);
    }

    /// Forgets the faults that no request has met yet.
    pub fn forget(&self) {
        lock(&self.state.faults).clear();
    }

    /// Orders that the next request of this method be held back.
    pub fn order_held(&self, method: &'static str) -> Arc<Gate> {
        let gate = Arc::<Gate>::default();
        self.order(method, Fault::Held(Arc::clone(&gate)));
        gate
    }

    /// The faults that no request has met yet.
    pub fn unused(&self) -> usize {
        lock(&self.state.faults).len()
    }

    /// Lets every request wait before it is passed on.
    pub fn delay(&self, latency: Duration) {
        *lock(&self.state.latency) = latency;
    }

    /// The head of the last request of this method: its first line and its headers, in lower case.
    pub fn last_head(&self, method: &str) -> String {
        lock(&self.state.heads)
            .get(method)
            .cloned()
            .unwrap_or_default()
    }

    /// What passed since the last call.
    pub fn take_passed(&self) -> Passed {
        std::mem::take(&mut lock(&self.state.passed).0)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        for (_, fault) in lock(&self.state.faults).drain(..) {
            if let Fault::Held(gate) = fault {
                gate.open();
            }
        }
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().ok();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The head of a request or an answer.
struct Head {
    text: String,
    length: Option<u64>,
    chunked: bool,
}

impl Head {
    fn read(from: &mut impl BufRead) -> io::Result<Self> {
        let mut head = Head {
            text: String::new(),
            length: None,
            chunked: false,
        };
        loop {
            let start = head.text.len();
            if from.read_line(&mut head.text)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = head.text[start..].trim_end().to_ascii_lowercase();
            match line.split_once(':') {
                Some(("content-length", length)) => head.length = length.trim().parse().ok(),
                Some(("transfer-encoding", _)) => head.chunked = true,
                // Answered here: the body is wanted in any case.
                Some(("expect", _)) => head.text.truncate(start),
                _ if line.is_empty() => return Ok(head),
                _ => {}
            }
        }
    }

    fn method(&self) -> &str {
        self.text.split(' ').next().unwrap_or_default()
    }

    fn status(&self) -> u16 {
        let status = self.text.split(' ').nth(1);
        status.and_then(|status| status.parse().ok()).unwrap_or(0)
    }
}

/// Copies a body, at most `limit` bytes of it.
fn copy_body(
    head: &Head,
    from: &mut impl BufRead,
    to: &mut impl Write,
    limit: u64,
) -> io::Result<()> {
    if !head.chunked {
        let length = head.length.unwrap_or(0);
        let copied = io::copy(&mut from.by_ref().take(length.min(limit)), to)?;
        return if copied == length.min(limit) {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        };
    }
    loop {
        let mut size = String::new();
        from.read_line(&mut size)?;
        to.write_all(size.as_bytes())?;
        let bytes = u64::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        // With the line end behind it.
        io::copy(&mut from.by_ref().take(bytes + 2), to)?;
        if bytes == 0 {
            return Ok(());
        }
    }
}

/// One client's connection to its end.
fn serve(client: &TcpStream, server: SocketAddr, state: &State) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut from_client = BufReader::with_capacity(1 << 16, client);
    let upstream = TcpStream::connect(server)?;
    upstream.set_nodelay(true)?;
    let mut from_server = BufReader::with_capacity(1 << 16, &upstream);
    loop {
        let request = Head::read(&mut from_client)?;
        if request.text.starts_with(ASKS_WHAT_PASSED) {
            tell_passed(client, state)?;
            continue;
        }
        let method = request.method().to_owned();
        let fault = {
            let mut faults = lock(&state.faults);
            let at = faults.iter().position(|(of, _)| *of == method);
            at.and_then(|at| faults.remove(at)).map(|(_, fault)| fault)
        };
        begin(state, &method);
        lock(&state.heads).insert(method.clone(), request.text.to_ascii_lowercase());
        let latency = *lock(&state.latency);
        if !latency.is_zero() {
            thread::sleep(latency);
        }
        let passed = pass(
            &request,
            fault.as_ref(),
            &mut from_client,
            &mut from_server,
            client,
            &upstream,
        );
        lock(&state.passed).1 -= 1;
        if !passed? {
            client.shutdown(Shutdown::Both)?;
            return Ok(());
        }
    }
}

/// What passed since it was last asked for: `PUT 1, GET 2, at once 3`.
fn tell_passed(mut client: &TcpStream, state: &State) -> io::Result<()> {
    let passed = std::mem::take(&mut lock(&state.passed).0);
    let told = |(method, count)| format!("{method} {count}, ");
    let requests: String = passed.requests.into_iter().map(told).collect();
    let text = format!("{requests}at once {}\n", passed.most_at_once);
    let length = text.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    client.write_all(head.as_bytes())?;
    client.write_all(text.as_bytes())
}

fn begin(state: &State, method: &str) {
    let mut passed = lock(&state.passed);
    passed.1 += 1;
    let at_once = passed.1;
    passed.0.most_at_once = passed.0.most_at_once.max(at_once);
    *passed.0.requests.entry(method.to_owned()).or_default() += 1;
}

/// Passes one request on, and its answer back. False: the connection ends here.
fn pass(
    request: &Head,
    fault: Option<&Fault>,
    from_client: &mut impl BufRead,
    from_server: &mut impl BufRead,
    mut client: &TcpStream,
    mut upstream: &TcpStream,
) -> io::Result<bool> {
    match fault {
        Some(Fault::Refused(status, headers)) => {
            copy_body(request, from_client, &mut io::sink(), u64::MAX)?;
            answer(client, *status, headers)?;
            return Ok(true);
        }
        Some(Fault::Absent) => {
            copy_body(request, from_client, &mut io::sink(), u64::MAX)?;
            client.write_all(NO_SUCH_KEY)?;
            return Ok(true);
        }
        Some(Fault::Broken) => return Ok(false),
        Some(Fault::Silence) => {
            // Until the client goes away.
            io::copy(from_client, &mut io::sink())?;
            return Ok(false);
        }
        Some(Fault::Held(gate)) => gate.hold(),
        _ => {}
    }
    let mut body = Vec::new();
    if fault == Some(&Fault::Twice) {
        copy_body(request, from_client, &mut body, u64::MAX)?;
        upstream.write_all(request.text.as_bytes())?;
        upstream.write_all(&body)?;
        let first = Head::read(from_server)?;
        copy_body(&first, from_server, &mut io::sink(), u64::MAX)?;
        upstream.write_all(request.text.as_bytes())?;
        upstream.write_all(&body)?;
    } else {
        upstream.write_all(request.text.as_bytes())?;
        copy_body(request, from_client, &mut upstream, u64::MAX)?;
    }
    let response = Head::read(from_server)?;
    match fault {
        Some(Fault::AnswerLost) => {
            copy_body(&response, from_server, &mut io::sink(), u64::MAX)?;
            return Ok(false);
        }
        Some(Fault::AnswerReplaced(status)) => {
            copy_body(&response, from_server, &mut io::sink(), u64::MAX)?;
            answer(client, *status, "")?;
            return Ok(true);
        }
        _ => client.write_all(response.text.as_bytes())?,
    }
    match fault {
        Some(Fault::Cut(bytes)) => {
            copy_body(&response, from_server, &mut client, *bytes)?;
            Ok(false)
        }
        Some(Fault::Trickle(pause)) => trickle(&response, from_server, client, *pause),
        Some(Fault::SilentBody) => {
            io::copy(from_client, &mut io::sink())?;
            Ok(false)
        }
        _ if response.status() == 204 || request.method() == "HEAD" => Ok(true),
        _ => {
            copy_body(&response, from_server, &mut client, u64::MAX)?;
            Ok(true)
        }
    }
}

fn trickle(
    response: &Head,
    from_server: &mut impl BufRead,
    mut client: &TcpStream,
    pause: Duration,
) -> io::Result<bool> {
    let mut body = Vec::new();
    copy_body(response, from_server, &mut body, u64::MAX)?;
    for byte in body {
        client.write_all(&[byte])?;
        thread::sleep(pause);
    }
    Ok(true)
}

fn answer(mut client: &TcpStream, status: u16, headers: &str) -> io::Result<()> {
    let head = format!("HTTP/1.1 {status} Ordered\r\n{headers}Content-Length: 0\r\n\r\n");
    client.write_all(head.as_bytes())
}
