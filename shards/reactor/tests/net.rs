//! TCP on a real ring, raw and under hyper.

use std::future::poll_fn;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use basalt_reactor::net::{Listener, Stream};
use basalt_reactor::ring::{self, Config};
use basalt_reactor::{Core, CoreId, Slice};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Bytes;
use hyper::rt::{Read, ReadBuf, Write};
use hyper::service::service_fn;
use hyper::{Request, Response};

fn run<T: 'static, F: Future<Output = T> + 'static>(main: impl FnOnce(Core) -> F) -> T {
    let config = Config { id: CoreId(0), cpu: None, arena_len: 64 << 20, entries: 256 };
    ring::run(&config, main).expect("a ring")
}

fn bind(core: &Core) -> Listener {
    Listener::bind(core, SocketAddr::from(([127, 0, 0, 1], 0))).expect("bind")
}

async fn read(stream: &mut Stream, out: &mut [u8]) -> io::Result<usize> {
    let mut out = ReadBuf::new(out);
    poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, out.unfilled())).await?;
    Ok(out.filled().len())
}

async fn write_all(stream: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, bytes)).await?;
        bytes = &bytes[count..];
    }
    poll_fn(|cx| Pin::new(&mut *stream).poll_flush(cx)).await
}

/// Sends back whatever comes.
fn echo(core: &Core, listener: Listener) {
    let spawner = core.clone();
    core.spawn(async move {
        loop {
            let (mut stream, peer) = listener.accept().await.expect("accept");
            assert_eq!(stream.peer_addr(), peer);
            spawner.spawn(async move {
                let mut bytes = vec![0; 10_000];
                while let Ok(count @ 1..) = read(&mut stream, &mut bytes).await {
                    if write_all(&mut stream, &bytes[..count]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

#[test]
fn bytes_come_back_in_order() {
    run(|core| async move {
        let listener = bind(&core);
        let addr = listener.local_addr();
        echo(&core, listener);
        let clients: Vec<_> = (0..8_usize)
            .map(|client| {
                let core = core.clone();
                core.clone().spawn(async move {
                    let mut stream = Stream::connect(&core, addr).await.expect("connect");
                    for round in 0..50 {
                        let sent: Vec<u8> = (0..1 + round * 700).map(|at| (at * 7 + client) as u8).collect();
                        write_all(&mut stream, &sent).await.expect("write");
                        let mut received = vec![0; sent.len()];
                        let mut at = 0;
                        while at < received.len() {
                            let count = read(&mut stream, &mut received[at..]).await.expect("read");
                            assert!(count > 0, "the echo ended early");
                            at += count;
                        }
                        assert!(sent == received);
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.expect("not cancelled");
        }
    });
}

#[test]
fn a_storm_of_connections_is_accepted() {
    const COUNT: usize = 1500;
    run(|core| async move {
        let listener = bind(&core);
        let addr = listener.local_addr();
        let storm = std::thread::spawn(move || {
            for _ in 0..COUNT / 100 {
                let streams: Vec<TcpStream> =
                    (0..100).map(|_| TcpStream::connect(addr).expect("connect")).collect();
                for mut stream in streams {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).expect("a byte for each");
                }
            }
        });
        // Nobody accepts at first: accepting must pause and then go on.
        core.sleep(Duration::from_millis(20)).await;
        for _ in 0..COUNT {
            let (mut stream, _) = listener.accept().await.expect("accept");
            write_all(&mut stream, &[1]).await.expect("write");
        }
        storm.join().expect("storm");
    });
}

#[test]
fn connections_beyond_the_receive_buffers_do_not_wait_for_each_other() {
    const COUNT: usize = 600;
    run(|core| async move {
        let listener = bind(&core);
        let addr = listener.local_addr();
        let clients = std::thread::spawn(move || {
            let mut streams: Vec<TcpStream> =
                (0..COUNT).map(|_| TcpStream::connect(addr).expect("connect")).collect();
            for stream in &mut streams {
                stream.write_all(&[1; 100]).expect("write");
            }
            for stream in &mut streams {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("an answer for each");
            }
        });
        let mut streams = Vec::new();
        for _ in 0..COUNT {
            let (mut stream, _) = listener.accept().await.expect("accept");
            // A first look arms the receive; then nobody reads while bytes arrive everywhere.
            let mut none = [0; 10];
            let mut first = Box::pin(async move {
                let count = read(&mut stream, &mut none).await.expect("read");
                (stream, count)
            });
            let early = poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx))).await;
            assert!(early.is_pending() || early.is_ready());
            streams.push((first, early));
        }
        core.sleep(Duration::from_millis(100)).await;
        // The last is served first.
        for (first, early) in streams.into_iter().rev() {
            let (mut stream, mut count) = match early {
                Poll::Ready(done) => done,
                Poll::Pending => first.await,
            };
            let mut bytes = [0; 64];
            while count < 100 {
                let more = read(&mut stream, &mut bytes).await.expect("read");
                assert!(more > 0 && bytes[..more].iter().all(|&byte| byte == 1));
                count += more;
            }
            write_all(&mut stream, &[2]).await.expect("write");
        }
        clients.join().expect("clients");
    });
}

#[test]
fn idle_connections_hold_no_buffer() {
    run(|core| async move {
        let listener = bind(&core);
        let addr = listener.local_addr();
        let mut streams = Vec::new();
        for _ in 0..200 {
            let client = Stream::connect(&core, addr).await.expect("connect");
            let (mut server, _) = listener.accept().await.expect("accept");
            core.spawn(async move {
                let mut bytes = [0; 100];
                let _ = read(&mut server, &mut bytes).await;
            });
            streams.push(client);
        }
        core.sleep(Duration::from_millis(20)).await;
        assert_eq!(core.arena().usage().used_max, 0);
    });
}

#[test]
fn a_peer_that_goes_away_is_an_error_or_an_end() {
    run(|core| async move {
        let listener = bind(&core);
        let addr = listener.local_addr();
        let client = Stream::connect(&core, addr).await.expect("connect");
        let (mut server, _) = listener.accept().await.expect("accept");
        drop(client);
        let mut bytes = [0; 10];
        assert_eq!(read(&mut server, &mut bytes).await.expect("end"), 0);
        assert_eq!(read(&mut server, &mut bytes).await.expect("still the end"), 0);
        let mut failed = false;
        for _ in 0..100 {
            failed |= write_all(&mut server, &[0; 1000]).await.is_err();
            core.sleep(Duration::from_millis(1)).await;
        }
        assert!(failed, "writing to nobody must fail");
        drop(listener);
        assert!(Stream::connect(&core, addr).await.is_err(), "nobody listens");
    });
}

#[test]
fn a_stream_is_dropped_with_a_send_in_flight() {
    run(|core| async move {
        let listener = bind(&core);
        let addr = listener.local_addr();
        for _ in 0..20 {
            let client = Stream::connect(&core, addr).await.expect("connect");
            let (mut server, _) = listener.accept().await.expect("accept");
            let slices: Vec<Slice> =
                (0..20).map(|_| core.arena().try_alloc(1 << 20).expect("room").freeze()).collect();
            let parts: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
            let count =
                poll_fn(|cx| Pin::new(&mut server).poll_write_vectored(cx, &parts)).await.expect("write");
            assert_eq!(count, 4 << 20, "one send is bounded");
            core.yield_now().await;
            let pending = poll_fn(|cx| Poll::Ready(Pin::new(&mut server).poll_flush(cx).is_pending())).await;
            assert!(pending, "the peer does not read");
            drop((server, slices));
            drop(client);
            while core.arena().usage().used > 0 {
                core.sleep(Duration::from_millis(1)).await;
            }
        }
    });
}

#[test]
fn an_early_answer_arrives_though_the_request_was_not_read() {
    run(|core| async move {
        let listener = bind(&core);
        let addr = listener.local_addr();
        let client = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(addr).expect("connect");
            stream.write_all(&vec![7; 8 << 20]).expect("the request is taken");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("no reset");
            answer
        });
        let (mut stream, _) = listener.accept().await.expect("accept");
        write_all(&mut stream, b"no").await.expect("write");
        stream.linger(64 << 20, core.now() + Duration::from_secs(10)).await;
        assert_eq!(client.join().expect("client"), "no");
    });
}

/// A body of slices from the arena.
struct Slices(Vec<Slice>);

impl Body for Slices {
    type Data = Slice;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Slice>, io::Error>>> {
        Poll::Ready(self.0.pop().map(|slice| Ok(Frame::data(slice))))
    }
}

#[test]
fn hyper_serves_arena_bodies_without_copying() {
    const LEN: usize = 3 << 20;
    run(|core| async move {
        let listener = bind(&core);
        let addr = listener.local_addr();
        let server = core.clone();
        core.spawn(async move {
            let (stream, _) = listener.accept().await.expect("accept");
            let core = server;
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let core = core.clone();
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    let mut slices = Vec::new();
                    for index in 0..3_u8 {
                        let mut buf = core.arena().alloc(1 << 20).await;
                        buf.fill(index + body.first().copied().unwrap_or(0));
                        slices.push(buf.freeze());
                    }
                    slices.reverse();
                    Ok::<_, hyper::Error>(
                        Response::builder()
                            .header("content-length", LEN)
                            .body(Slices(slices))
                            .expect("a response"),
                    )
                }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(stream, service);
            connection.await.expect("served");
        });
        let stream = Stream::connect(&core, addr).await.expect("connect");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(stream).await.expect("handshake");
        let connection = core.spawn(connection);
        for round in 0..20_u8 {
            let request = Request::post("/")
                .header("host", "x")
                .body(Full::new(Bytes::from(vec![round; 3])))
                .expect("a request");
            let response = sender.send_request(request).await.expect("response");
            let body = response.into_body().collect().await.expect("body").to_bytes();
            assert_eq!(body.len(), LEN);
            for (index, part) in body.chunks(1 << 20).enumerate() {
                assert!(part.iter().all(|&byte| byte == index as u8 + round));
            }
        }
        drop(sender);
        connection.await.expect("not cancelled").expect("closed cleanly");
        let stats = ring::stats(&core);
        assert_eq!(stats.payload_bytes_copied, 0);
        assert!(stats.net_bytes_sent >= 20 * LEN as u64);
        while core.arena().usage().used > 0 {
            core.sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn payload_from_elsewhere_is_copied_and_counted() {
    const LEN: usize = 1 << 20;
    run(|core| async move {
        let listener = bind(&core);
        let addr = listener.local_addr();
        core.spawn(async move {
            let (stream, _) = listener.accept().await.expect("accept");
            let body = Rc::new(vec![9_u8; LEN]);
            let service = service_fn(move |_: Request<hyper::body::Incoming>| {
                let body = Bytes::from(body.to_vec());
                async move { Ok::<_, hyper::Error>(Response::new(Full::new(body))) }
            });
            hyper::server::conn::http1::Builder::new()
                .serve_connection(stream, service)
                .await
                .expect("served");
        });
        let stream = Stream::connect(&core, addr).await.expect("connect");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(stream).await.expect("handshake");
        core.spawn(connection);
        let request = Request::get("/").header("host", "x").body(Empty::new()).expect("a request");
        let body = sender.send_request(request).await.expect("response").into_body();
        let body = body.collect().await.expect("body").to_bytes();
        assert!(body.len() == LEN && body.iter().all(|&byte| byte == 9));
        assert!(ring::stats(&core).payload_bytes_copied >= LEN as u64 - 4096);
    });
}
