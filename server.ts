#!/usr/bin/env -S npx ts-node
/**
 * An echo server (RFC 862): it accepts one TCP connection, prints what it
 * receives, sends the same bytes back, and ends when the client stops sending.
 *
 *     npx ts-node server.ts [host] [port]
 *
 * When client.ts runs in another terminal, the server prints this:
 *
 *     Server started on localhost, listening on TCP port 54321
 *     Incoming connection from 127.0.0.1:58666...
 *     Received following data: Hello World!
 *     Server is shutting down. Bye!
 *
 * Comments such as accept() name calls in Python's socket module. Left out on
 * purpose: more than one client; a time limit on the client; flushing stdout when
 * a signal arrives.
 */
import { lookup } from 'node:dns/promises';
import { once } from 'node:events';
import { type AddressInfo, createServer, isIP, isIPv6, type Socket } from 'node:net';
import { StringDecoder } from 'node:string_decoder';

const HOST = 'localhost';
const PORT = 54321;
const BACKLOG = 1; // connections that may wait for accept(); Linux lets one more wait
const GOODBYE = 'Server is shutting down. Bye!';

/** Waits for a client, and serves it until it stops sending. Throws on any failure. */
async function serve(host: string, port: number): Promise<void> {
  const { address } = await lookup(host, { family: 4 }); // AF_INET: listen() might take ::1 for localhost
  const server = createServer({ allowHalfOpen: true }); // lets us send after the client's FIN
  server.listen({ host: address, port, backlog: BACKLOG }); // socket(), bind(), listen()
  await once(server, 'listening'); // throws if the port is in use, for instance
  process.on('SIGINT', endAtSignal).on('SIGTERM', endAtSignal); // Ctrl-C and kill(1)
  const bound = server.address() as AddressInfo; // if port is 0, the system has chosen one
  console.log(`Server started on ${host}, listening on TCP port ${bound.port}`);
  const [connection] = await once(server, 'connection') as [Socket]; // accept()
  server.close(); // close(): a client that is still in the backlog gets an RST (reset)
  console.log(`Incoming connection from ${peerOf(connection)}...`);
  const decoder = new StringDecoder('utf8'); // it keeps an incomplete character for the next chunk
  for await (const received of connection) { // recv(), until EOF
    await printReceived(decoder.write(received)); // decode(), print()
    await sendAll(connection, received); // sendall()
  } // close(): when the loop ends, Node closes the connection
  await printReceived(decoder.end()); // if the data ended within a character, this is \ufffd
  console.log(GOODBYE);
}

/** print(): waits until stdout has taken the line. If its reader is slow, we receive slowly, too. */
async function printReceived(text: string): Promise<void> {
  if (text === '') return; // no character is complete yet
  const line = `Received following data: ${visible(text)}\n`;
  await new Promise((resolve) => process.stdout.write(line, resolve)); // a failure is handled at the end
}

/** sendall(): waits until the system has taken the bytes. A slow client delays that. */
function sendAll(connection: Socket, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    connection.write(bytes, (error) => {
      if (error) reject(connection.errored ?? error); // errored: why the connection was lost before
      else resolve();
    });
  });
}

/** getpeername(): the client's address and port, such as 127.0.0.1:58666 or [::1]:58666. */
function peerOf(connection: Socket): string {
  const { remoteAddress = 'unknown', remotePort = 0 } = connection; // unknown after the client's RST
  const address = isIPv6(remoteAddress) ? `[${remoteAddress}]` : remoteAddress;
  return `${address}:${remotePort}`;
}

/** Ends the server at once, with status 0: a signal is the usual way. The system closes its sockets. */
function endAtSignal(): void {
  console.log(GOODBYE);
  process.exit();
}

// So much for TCP. The rest is arguments, escaping and errors.
class UsageError extends Error {}
const USAGE = `Usage: npx ts-node server.ts [host] [port]
  host  address or name (looked up as IPv4) to listen on; '' for every IPv4 address (default: ${HOST})
  port  0 to 65535; 0 lets the system choose (default: ${PORT})`;

/** Parses the arguments, then serves. Throws a UsageError if one is wrong. */
async function main(args: string[]): Promise<void> {
  const [host = HOST, port = String(PORT), unexpected] = args;
  if (host === '-h' || host === '--help') return console.log(USAGE);
  // The system would read 127.1 as 127.0.0.1, so a name must not end in a number, or have no letter.
  const isNumeric = /(^|\.)(\d+|0x[\da-f]+)$/i.test(host) || !/\p{L}/u.test(host);
  if (host.startsWith('-') || (host !== '' && isNumeric && !isIP(host)))
    throw new UsageError(`"${host}" is neither a host name nor an IP address`);
  if (!/^\d{1,5}$/.test(port) || Number(port) > 65535)
    throw new UsageError(`"${port}" is not a port from 0 to 65535`);
  if (unexpected !== undefined) throw new UsageError(`unexpected argument "${unexpected}"`);
  await serve(host || '0.0.0.0', Number(port)); // '' means every IPv4 address, as in bind()
}

/** Escapes control characters (ASCII's, DEL, C1's, text direction's) as \u{1b}, but not tab and newline. */
function visible(text: string): string {
  return text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g,
    (character) => `\\u{${character.charCodeAt(0).toString(16)}}`);
}

/** Reports the error, then exits with status 2 if the usage was wrong, and else with 1. */
function fail(error: NodeJS.ErrnoException): void {
  let report = `server.ts: ${visible(error.message).replaceAll('\n', '\\n')}\n`;
  if (error instanceof UsageError) report += `${USAGE}\n`;
  else if (!error.syscall) report = `${error.stack}\n`; // no system call has failed, so it's a bug
  process.stdout.write('', () => { // wait for earlier output, which exit() would discard
    process.stderr.write(report, () => process.exit(error instanceof UsageError ? 2 : 1));
  });
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') console.error(`server.ts: ${error.message}`); // EPIPE: its reader has gone
  process.exit(1);
});
main(process.argv.slice(2)).catch(fail);
