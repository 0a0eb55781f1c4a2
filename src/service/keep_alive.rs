//! Answers to operations that may take long: copies, and the completion of multipart uploads.
//!
//! Most are done soon and answer like any other, with a status that tells the truth. One that takes longer has its 200 begin
//! without it, because clients and proxies give up on a silent connection: the XML declaration, white space as a sign of
//! life, and at the end the result or an `<Error>`, as S3 documents.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use basalt_reactor::Core;
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;

use super::context::{Context, XML, xml_response};
use super::failure::Result;
use crate::http::{LocalBoxFuture, Response, ResponseBody};
use crate::s3::xml::writer::DECLARATION;

/// How long an operation may take before its answer begins without it.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How often white space is sent from then on.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Answers with the document (without declaration) that `work` ends in. Dropping the answer drops the work.
pub(super) async fn answer(
    context: &Context,
    work: impl Future<Output = Result<String>> + 'static,
) -> Result<Response> {
    let core = context.engine().core().clone();
    let mut work: LocalBoxFuture<Result<String>> = Box::pin(work);
    if let Some(done) = within(&core, SILENCE_MAX, &mut work).await {
        return done.map(|document| {
            let mut whole = String::with_capacity(DECLARATION.len() + document.len());
            whole.push_str(DECLARATION);
            whole.push_str(&document);
            xml_response(whole)
        });
    }
    let (asked, host_id, path) =
        (Rc::clone(&context.asked), context.host_id.clone(), context.uri.path().to_owned());
    let body = ResponseBody::produce(None, async move |mut writer| {
        writer.send(Bytes::from_static(DECLARATION.as_bytes())).await;
        let done = loop {
            match within(&core, SIGN_OF_LIFE, &mut work).await {
                Some(done) => break done,
                None => writer.send(Bytes::from_static(b" ")).await,
            }
        };
        let document = done.unwrap_or_else(|failure| {
            let document = failure.into_error(&asked).to_xml(&path, asked.id.as_str(), &host_id);
            // The declaration has been sent.
            document.strip_prefix(DECLARATION).map(str::to_owned).unwrap_or(document)
        });
        writer.send(Bytes::from(document)).await;
        Ok(())
    });
    let mut response = Response::new(StatusCode::OK).with_body(body);
    response.headers.insert(CONTENT_TYPE, XML);
    Ok(response)
}

/// What `work` gives, unless `time` is over first.
async fn within<T>(core: &Core, time: Duration, work: &mut Pin<Box<dyn Future<Output = T>>>) -> Option<T> {
    let mut over = std::pin::pin!(core.sleep(time));
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => over.as_mut().poll(cx).map(|()| None),
    })
    .await
}
