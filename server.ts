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
 * Comments such as accept() name calls of Python's socket module; README.md has
 * the original. Left out on purpose: more than one client; a time limit for one
 * that is silent or doesn't read; the last lines if a signal finds stdout blocked.
 */
import { lookup } from 'node:dns/promises';
import { once } from 'node:events';
import { type AddressInfo, createServer, isIP, isIPv6, type Socket } from 'node:net';
import { StringDecoder } from 'node:string_decoder';

const HOST = 'localhost';
const PORT = 54321;
const BACKLOG = 1; // connections that may wait for accept(); Linux lets one more wait
const LAST_LINE = 'Server is shutting down. Bye!';

/** Serves one client, from the first line to the last. Throws whatever goes wrong on the way. */
async function serve(host: string, port: number): Promise<void> {
  const { address } = await lookup(host, { family: 4 }); // AF_INET, for names: localhost is not ::1
  const server = createServer({ allowHalfOpen: true }); // after the client's FIN, we can still send
  server.listen({ host: address, port, backlog: BACKLOG }); // socket(), bind(), listen()
  await once(server, 'listening'); // throws if there is an 'error' instead
  process.on('SIGINT', endAtSignal).on('SIGTERM', endAtSignal); // Ctrl-C and kill(1)
  const bound = server.address() as AddressInfo; // if port is 0, the system has chosen another
  console.log(`Server started on ${host}, listening on TCP port ${bound.port}`);
  const [connection] = await once(server, 'connection') as [Socket]; // accept()
  server.close(); // close() the listening socket: a client still in the backlog gets an RST
  console.log(`Incoming connection from ${peerOf(connection)}...`);
  const decoder = new StringDecoder('utf8'); // keeps an incomplete character for the next chunk
  for await (const received of connection) { // recv(), until EOF
    await printReceived(decoder.write(received)); // decode(), print()
    await sendAll(connection, received); // sendall()
  } // close(): the loop closes the connection when it ends
  await printReceived(decoder.end()); // the client may have stopped within a character
  console.log(LAST_LINE);
}

/** print(): resolves once stdout has taken the line, so a slow reader holds the client back. */
async function printReceived(text: string): Promise<void> {
  if (text === '') return; // no character is complete yet
  await new Promise((taken) => process.stdout.write(`Received following data: ${visible(text)}\n`, taken));
}

/** sendall(): resolves once the system has taken the bytes, which a slow client delays. */
function sendAll(connection: Socket, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    connection.write(bytes, (error) => {
      if (error) reject(connection.errored ?? error); // errored: what broke the connection before
      else resolve();
    });
  });
}

/** getpeername(): the client's address and port, such as 127.0.0.1:58666 or [::1]:58666. */
function peerOf(connection: Socket): string {
  const { remoteAddress = 'unknown', remotePort = 0 } = connection; // if it has already reset
  return `${isIPv6(remoteAddress) ? `[${remoteAddress}]` : remoteAddress}:${remotePort}`;
}

/** Ends the server at once, with status 0. The system closes its sockets. */
function endAtSignal(): void {
  console.log(LAST_LINE);
  process.exit();
}

class UsageError extends Error {}
const USAGE = `Usage: npx ts-node server.ts [host] [port]
  host  address or name (looked up as IPv4) to listen on; '' for every IPv4 address (default: ${HOST})
  port  0 to 65535; 0 lets the system choose (default: ${PORT})`;

/** Takes the arguments, and serves. Throws a UsageError if one is wrong. */
async function main(args: string[]): Promise<void> {
  const [host = HOST, port = String(PORT), unexpected] = args;
  if (host === '-h' || host === '--help') return console.log(USAGE);
  // getaddrinfo(3) would take 192.168.1 for 192.168.0.1, so only an IP address may end in a number.
  const endsInNumber = /(^|\.)(\d+|0x[\da-f]*)\.?$/i.test(host);
  if (host.startsWith('-') || (endsInNumber && !isIP(host)))
    throw new UsageError(`"${host}" is neither a host name nor an IP address`);
  if (!/^\d{1,5}$/.test(port) || Number(port) > 65535)
    throw new UsageError(`"${port}" is not a port from 0 to 65535`);
  if (unexpected !== undefined) throw new UsageError(`unexpected argument "${unexpected}"`);
  await serve(host || '0.0.0.0', Number(port)); // INADDR_ANY, see ip(7)
}

/** Escapes control characters as \u{1b}: ASCII's but tab and newline; DEL, C1; text direction. */
function visible(text: string): string {
  return text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g,
    (character) => `\\u{${character.charCodeAt(0).toString(16)}}`);
}

/** Reports an error in one line, or a bug with its stack. Ends with status 1; 2 for the usage. */
function fail(error: NodeJS.ErrnoException): void {
  const usage = error instanceof UsageError ? `${USAGE}\n` : '';
  const isBug = !(error instanceof UsageError || error.syscall); // syscall: which one failed
  const report = isBug ? error.stack : `server.ts: ${visible(error.message).replaceAll('\n', '\\n')}`;
  process.stdout.write('', () => { // once stdout has taken what was printed before
    process.stderr.write(`${report}\n${usage}`, () => process.exit(usage ? 2 : 1));
  });
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') console.error(`server.ts: ${error.message}`); // such as a full disk
  process.exit(1); // silently if its reader has left, as head(1) does
});
main(process.argv.slice(2)).catch(fail);
