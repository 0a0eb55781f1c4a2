//! The chunked uploads AWS publishes, arbitrary fragmentation, and bodies that lie.

use http::{HeaderValue, Method};
use proptest::prelude::*;

use super::*;
use crate::s3::auth::{RegionPolicy, RequestHead, Secret, SigningKeys, authenticate};
use crate::s3::query::Query;

const NOW: i64 = 1_369_353_600;
const SIGNED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
const SIGNED_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";

/// Authenticates the PUT of the published examples and gives the decoder for its body.
fn published_decoder(mode: &'static str, signed_headers: &str, seed: &str) -> ChunkedDecoder {
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
         SignedHeaders={signed_headers},Signature={seed}"
    );
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "s3.amazonaws.com"),
        ("x-amz-date", "20130524T000000Z"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("x-amz-content-sha256", mode),
        ("content-encoding", "aws-chunked"),
        ("x-amz-decoded-content-length", "66560"),
        ("content-length", "66824"),
        ("authorization", &authorization),
    ] {
        headers.insert(name, HeaderValue::from_str(value).expect("a header value"));
    }
    if mode == SIGNED_TRAILER {
        headers.insert("x-amz-trailer", HeaderValue::from_static("x-amz-checksum-crc32c"));
    }
    let query = Query::parse("").expect("an empty query");
    let head = RequestHead {
        method: &Method::PUT,
        path: "/examplebucket/chunkObject.txt",
        query: &query,
        headers: &headers,
    };
    let secret = |_: &str| Some(Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"));
    let region = RegionPolicy::Exactly("us-east-1".into());
    let mut identity = authenticate(&head, &secret, NOW, &region, &mut SigningKeys::default())
        .expect("the published seed signature");
    let signer = identity.take_chunk_signer();
    ChunkedDecoder::from_headers(identity.payload(), signer, &headers)
        .expect("good headers")
        .expect("a chunked mode")
}

fn plain_decoder() -> ChunkedDecoder {
    published_decoder(
        SIGNED,
        "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;\
         x-amz-decoded-content-length;x-amz-storage-class",
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    )
}

fn trailer_decoder() -> ChunkedDecoder {
    published_decoder(
        SIGNED_TRAILER,
        "content-encoding;host;x-amz-content-sha256;x-amz-date;\
         x-amz-decoded-content-length;x-amz-storage-class;x-amz-trailer",
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
    )
}

/// 65 KiB of the letter a, in chunks of 64 KiB, 1 KiB and nothing, with the given signatures.
fn published_body(signatures: [&str; 3], end: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (len, signature) in [65_536, 1_024, 0].into_iter().zip(signatures) {
        body.extend_from_slice(format!("{len:x};chunk-signature={signature}\r\n").as_bytes());
        body.resize(body.len() + len, b'a');
        if len > 0 {
            body.extend_from_slice(b"\r\n");
        }
    }
    body.extend_from_slice(end.as_bytes());
    body
}

fn plain_body() -> Vec<u8> {
    published_body(
        [
            "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
            "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
            "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
        ],
        "\r\n",
    )
}

fn trailer_body(end: &str) -> Vec<u8> {
    published_body(
        [
            "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
            "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
            "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
        ],
        end,
    )
}

const TRAILER_END: &str = "x-amz-checksum-crc32c:sOO8/Q==\r\n\
    x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n";

fn refusal(decoder: ChunkedDecoder, body: &[u8]) -> S3Error {
    decode_whole(decoder, body).expect_err("the body must be refused")
}

fn unsigned(decoded_len: u64) -> ChunkedDecoder {
    ChunkedDecoder::new(decoded_len, Some(vec![HeaderName::from_static("x-amz-checksum-crc32")]), None)
}

#[test]
fn published_chunked_upload() {
    assert_eq!(plain_body().len(), 66_824, "the published Content-Length");
    let (data, trailers) = decode_whole(plain_decoder(), &plain_body()).expect("the published signatures");
    assert_eq!(data, vec![b'a'; 66_560]);
    assert!(trailers.is_empty());
}

#[test]
fn published_upload_with_trailer() {
    let (data, trailers) =
        decode_whole(trailer_decoder(), &trailer_body(TRAILER_END)).expect("the published signatures");
    assert_eq!(data, vec![b'a'; 66_560]);
    assert_eq!(trailers["x-amz-checksum-crc32c"], "sOO8/Q==");
    // The line ends as the reference prints them.
    let as_printed = TRAILER_END.replacen("==\r\n", "==\n\r\n", 1);
    decode_whole(trailer_decoder(), &trailer_body(&as_printed)).expect("the same headers");
}

#[test]
fn a_chunk_that_was_changed_is_never_completed() {
    for at in [90, 65_000, 65_700, 66_600] {
        let mut body = plain_body();
        body[at] ^= 1;
        let error = refusal(plain_decoder(), &body);
        assert_eq!(error.code(), ErrorCode::SignatureDoesNotMatch, "byte {at}");
        assert!(error.field("StringToSign").expect("shown").starts_with("AWS4-HMAC-SHA256-PAYLOAD\n"));
    }
    let trailer = TRAILER_END.replace("sOO8", "sOO9");
    let error = refusal(trailer_decoder(), &trailer_body(&trailer));
    assert_eq!(error.code(), ErrorCode::SignatureDoesNotMatch);
    assert!(error.field("StringToSign").expect("shown").starts_with("AWS4-HMAC-SHA256-TRAILER\n"));
}

#[test]
fn the_last_bytes_of_a_bad_chunk_are_not_handed_out() {
    let mut body = plain_body();
    body[90] ^= 1;
    let mut decoder = plain_decoder();
    let first = decoder.decode(&body[..1_000]).expect("nothing is wrong yet");
    assert!(!first.data.is_empty() && !first.verified);
    assert!(decoder.decode(&body[1_000..]).is_err());
    assert_eq!(decoder.decode(b"x").expect_err("lost").code(), ErrorCode::IncompleteBody);
    assert_eq!(decoder.finish().expect_err("lost").code(), ErrorCode::IncompleteBody);
}

#[test]
fn every_truncation_is_incomplete() {
    let body = b"2001\r\n".iter().copied().chain([b'x'; 0x2001]).collect::<Vec<u8>>();
    let body = [body.as_slice(), b"\r\n3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"].concat();
    for len in 0..body.len() {
        let error = refusal(unsigned(0x2004), &body[..len]);
        assert_eq!(error.code(), ErrorCode::IncompleteBody, "{len} bytes");
    }
    decode_whole(unsigned(0x2004), &body).expect("the whole body");
    let signed = plain_body();
    for len in [0, 85, 5_000, 65_622, 66_820, 66_823] {
        assert_eq!(refusal(plain_decoder(), &signed[..len]).code(), ErrorCode::IncompleteBody);
    }
    let trailer = trailer_body(TRAILER_END);
    for cut in 1..TRAILER_END.len() + 4 {
        let error = refusal(trailer_decoder(), &trailer[..trailer.len() - cut]);
        assert_eq!(error.code(), ErrorCode::IncompleteBody);
    }
}

#[test]
fn data_must_add_up_to_the_decoded_length() {
    let body = b"3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
    decode_whole(unsigned(3), body).expect("the right length");
    for len in [0, 2, 4, u64::MAX] {
        assert_eq!(refusal(unsigned(len), body).code(), ErrorCode::IncompleteBody, "{len}");
    }
    let huge = b"ffffffffffffffff\r\nabc";
    assert_eq!(refusal(unsigned(3), huge).code(), ErrorCode::IncompleteBody);
    assert_eq!(refusal(unsigned(u64::MAX), huge).code(), ErrorCode::IncompleteBody);
    let empty = b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
    assert_eq!(decode_whole(unsigned(0), empty).expect("an empty object").0, b"");
}

#[test]
fn only_the_last_chunk_may_be_small() {
    let error = refusal(unsigned(5), b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert_eq!(error.code(), ErrorCode::InvalidChunkSizeError);
    assert_eq!(error.field("Chunk"), Some("2"));
    assert_eq!(error.field("BadChunkSize"), Some("3"));
}

#[test]
fn bad_framing() {
    let long_line = [b'0'; CHUNK_LINE_LEN_MAX + 1];
    let long_extension = format!("1;x={}", "y".repeat(1_000_000));
    for body in [
        b"x\r\n".as_slice(),
        b"\r\n",
        b"1;chunk-extension=1\r\na\r\n0\r\n",
        b"1\r\nab\r\n",
        b"1\r\na0\r\n\r\n",
        b"11111111111111111\r\n",
        &long_line,
        long_extension.as_bytes(),
        b"3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\nmore",
    ] {
        let error = refusal(unsigned(3), body);
        assert!(matches!(error.code(), ErrorCode::InvalidRequest | ErrorCode::IncompleteBody), "{error}");
    }
    let signature = format!("3;chunk-signature={}\r\nabc\r\n", "0".repeat(64));
    assert_eq!(refusal(unsigned(3), signature.as_bytes()).code(), ErrorCode::InvalidRequest);
    assert_eq!(refusal(plain_decoder(), b"10000\r\n").code(), ErrorCode::InvalidRequest);
}

#[test]
fn trailers_are_exactly_the_announced_ones() {
    let many = format!("x-amz-checksum-crc32:{}\r\n", "A".repeat(TRAILER_LEN_MAX));
    for trailer in [
        "\r\n",
        "x-amz-checksum-crc32c:AAAAAA==\r\n\r\n",
        "x-amz-checksum-crc32:AAAAAA==\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n",
        "x-amz-checksum-crc32:AAAAAA==\r\nx-amz-meta-a:1\r\n\r\n",
        "x-amz-checksum-crc32:AAAAAA==\r\nx-amz-trailer-signature:00\r\n\r\n",
        "x-amz-checksum-crc32\r\n\r\n",
        "x-amz-checksum-crc32:\0\r\n\r\n",
        ":v\r\n\r\n",
    ] {
        let body = format!("3\r\nabc\r\n0\r\n{trailer}");
        let error = refusal(unsigned(3), body.as_bytes());
        assert_eq!(error.code(), ErrorCode::MalformedTrailerError, "{trailer}");
    }
    let error = refusal(unsigned(3), format!("3\r\nabc\r\n0\r\n{many}").as_bytes());
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
    let spaced = b"3\r\nabc\r\n0\r\nX-Amz-Checksum-CRC32 : AAAAAA== \r\n\r\n";
    let (_, trailers) = decode_whole(unsigned(3), spaced).expect("names fold, values are trimmed");
    assert_eq!(trailers["x-amz-checksum-crc32"], "AAAAAA==");
}

#[test]
fn headers_of_a_chunked_request() {
    let check = |pairs: &[(&'static str, &'static str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        ChunkedDecoder::from_headers(PayloadMode::StreamingUnsignedTrailer, None, &headers)
            .map(|decoder| decoder.expect("a chunked mode").decoded_len())
            .map_err(|error| error.code())
    };
    let trailer = ("x-amz-trailer", "x-amz-checksum-crc32");
    assert_eq!(check(&[trailer, ("x-amz-decoded-content-length", "12")]), Ok(12));
    assert_eq!(check(&[trailer]), Err(ErrorCode::MissingContentLength));
    for bad in ["", "-1", "+1", "1x", "18446744073709551616"] {
        let length = ("x-amz-decoded-content-length", bad);
        assert_eq!(check(&[trailer, length]), Err(ErrorCode::InvalidArgument), "{bad}");
    }
    let length = ("x-amz-decoded-content-length", "1");
    assert_eq!(check(&[trailer, length, length]), Err(ErrorCode::InvalidArgument));
    assert_eq!(check(&[length]), Err(ErrorCode::MalformedTrailerError));
    for bad in ["", "x-amz-meta-a", "x-amz-checksum-crc32,", "content-length", "x y"] {
        assert_eq!(check(&[length, ("x-amz-trailer", bad)]), Err(ErrorCode::InvalidRequest), "{bad}");
    }
    assert_eq!(check(&[length, trailer, trailer]), Err(ErrorCode::InvalidRequest));
    let headers = HeaderMap::new();
    for payload in [PayloadMode::Unsigned, PayloadMode::Signed([0; 32])] {
        assert!(matches!(ChunkedDecoder::from_headers(payload, None, &headers), Ok(None)));
    }
}

/// Feeds a body cut at the given lengths, over and over.
fn decode_cut(mut decoder: ChunkedDecoder, body: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, HeaderMap)> {
    let mut data = Vec::new();
    let mut cuts = cuts.iter().cycle();
    let mut rest = body;
    while !rest.is_empty() {
        let len = cuts.next().map_or(rest.len(), |cut| (*cut).min(rest.len()));
        let (mut fragment, after) = rest.split_at(len);
        while !fragment.is_empty() {
            let step = decoder.decode(fragment)?;
            assert!(step.consumed > 0 && step.data.end <= step.consumed && step.consumed <= fragment.len());
            data.extend_from_slice(&fragment[step.data]);
            fragment = &fragment[step.consumed..];
        }
        rest = after;
    }
    Ok((data, decoder.finish()?))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn fragmentation_does_not_matter(cuts in prop::collection::vec(1usize..9_000, 1..20)) {
        let (data, _) = decode_cut(plain_decoder(), &plain_body(), &cuts).expect("a good body");
        prop_assert!(data.len() == 66_560 && data.iter().all(|b| *b == b'a'));
        let (_, trailers) =
            decode_cut(trailer_decoder(), &trailer_body(TRAILER_END), &cuts).expect("a good body");
        prop_assert_eq!(trailers.len(), 1);
    }

    #[test]
    fn single_bytes_do_not_matter(
        lens in prop::collection::vec(8_192usize..9_000, 0..3), last in 0usize..100, cut in 1usize..7,
    ) {
        let mut body = Vec::new();
        let mut expected = Vec::new();
        for (i, len) in lens.iter().chain([&last]).enumerate().filter(|(_, len)| **len > 0) {
            let data: Vec<u8> = (0..*len).map(|at| (at * 7 + i) as u8).collect();
            body.extend_from_slice(format!("{len:X}\r\n").as_bytes());
            body.extend_from_slice(&data);
            body.extend_from_slice(b"\r\n");
            expected.extend_from_slice(&data);
        }
        body.extend_from_slice(b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n");
        let (data, _) = decode_cut(unsigned(expected.len() as u64), &body, &[cut]).expect("a good body");
        prop_assert!(data == expected);
    }

    /// Hostile bodies: no panic, the same verdict however they are cut, never more data than declared.
    #[test]
    fn hostile_bodies(
        body in "([0-9a-fA-F]{0,3}(;chunk-signature=)?(\r\n|\n|\r)?[ab:x-]{0,5}(\r\n)?){0,6}(0\r\nx-amz-checksum-crc32:A\r\n\r\n)?",
        len in 0u64..40,
        cut in 1usize..5,
    ) {
        let whole = decode_whole(unsigned(len), body.as_bytes());
        let cut = decode_cut(unsigned(len), body.as_bytes(), &[cut]);
        match (&whole, &cut) {
            (Ok((data, _)), Ok((same, _))) => {
                prop_assert_eq!(data, same);
                prop_assert_eq!(data.len() as u64, len);
            }
            (Err(error), Err(same)) => prop_assert_eq!(error, same),
            _ => prop_assert!(false, "{:?} against {:?}", whole, cut),
        }
    }

    #[test]
    fn random_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200), len: u64) {
        let _ = decode_whole(unsigned(len), &body);
        let _ = decode_whole(plain_decoder(), &body);
    }
}
