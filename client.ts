#!/usr/bin/env -S npx ts-node
/**
 * An echo client (RFC 862): it connects to an echo server over TCP, sends a
 * message, reads until as many bytes have come back, and closes.
 *
 *     npx ts-node client.ts [host] [port] [message]
 *
 * When server.ts runs in another terminal, the client prints this:
 *
 *     Connected to server: localhost on port 54321
 *     Sending some data...
 *     Response from server: Hello World!
 *     Connection closed.
 *
 * Comments such as connect() name calls of Python's socket module; README.md has
 * the original. Left out on purpose: more than one message; retrying; what the
 * server sends after the echo, unless it arrives with the echo's last bytes.
 */
import { isIP, Socket } from 'node:net';

const HOST = 'localhost';
const PORT = 54321;
const MESSAGE = 'Hello World!';
const TIMEOUT = 10; // seconds without traffic after which the client gives up

/** Has one conversation with the server, line by line. Throws whatever goes wrong on the way. */
async function talk(host: string, port: number, message: Buffer): Promise<void> {
  const connection = new Socket(); // socket()
  giveUpIfSilent(connection, `${host} port ${port}`); // settimeout()
  connection.connect({ host, port, family: 4 }); // connect(); 4 is AF_INET, for names
  await new Promise((resolve, reject) => {
    connection.on('connect', resolve);
    connection.on('error', reject);
  });
  if (connection.localPort === port && connection.localAddress === connection.remoteAddress)
    throw new ExpectedError(`nothing is listening: TCP connected the socket to port ${port} itself`);
  console.log(`Connected to server: ${host} on port ${port}`);
  console.log('Sending some data...');
  connection.write(message); // sendall(), but it doesn't wait: if neither side read, both would
  let reply = Buffer.alloc(0);
  for await (const received of connection) { // recv()
    reply = Buffer.concat([reply, received]);
    if (reply.length >= message.length) break; // the echo is complete
  } // close(): the loop closes the connection when it ends
  console.log(`Response from server: ${visible(reply.toString())}`); // decode()
  console.log('Connection closed.');
  if (reply.length < message.length)
    throw new ExpectedError(`server closed after ${reply.length} of ${message.length} bytes`);
  if (!reply.equals(message)) throw new ExpectedError('the reply differs from the message');
}

/** settimeout(): ends the connection with an error if nothing arrives, once the host is looked up. */
function giveUpIfSilent(connection: Socket, server: string): void {
  connection.on('connectionAttempt', () => connection.setTimeout(TIMEOUT * 1000));
  connection.on('timeout', () => {
    const { connecting, bytesRead } = connection;
    setImmediate(() => { // after Ctrl-Z and fg, Node first reads what has arrived meanwhile
      if (connection.connecting !== connecting || connection.bytesRead !== bytesRead) return;
      connection.destroy(new ExpectedError(`nothing arrived from ${server} for ${TIMEOUT} s`));
    });
  });
}

class ExpectedError extends Error {} // reported without its stack
class UsageError extends ExpectedError {}
const USAGE = `Usage: npx ts-node client.ts [host] [port] [message]
  host     address or name (looked up as IPv4) of the server (default: ${HOST})
  port     1 to 65535 (default: ${PORT})
  message  any text, sent as UTF-8 (default: ${MESSAGE})`;

/** Takes the arguments, and talks. Throws a UsageError if one is wrong. */
async function main(args: string[]): Promise<void> {
  const [host = HOST, port = String(PORT), message = MESSAGE, unexpected] = args;
  if (host === '-h' || host === '--help') return console.log(USAGE);
  // getaddrinfo(3) would take 192.168.1 for 192.168.0.1, so only an IP address may end in a number.
  const endsInNumber = /(^|\.)(\d+|0x[\da-f]*)\.?$/i.test(host);
  if (host === '' || host.startsWith('-') || (endsInNumber && !isIP(host)))
    throw new UsageError(`"${host}" is neither a host name nor an IP address`);
  if (!/^[1-9]\d{0,4}$/.test(port) || Number(port) > 65535) throw new UsageError(`"${port}" is not a port, 1 to 65535`);
  if (message === '') throw new UsageError('the message is empty: nothing would come back');
  if (unexpected !== undefined) throw new UsageError(`unexpected argument "${unexpected}"`);
  await talk(host, Number(port), Buffer.from(message));
}

/** Escapes control characters as \u{1b}: ASCII's but tab and newline; DEL, C1; text direction. */
function visible(text: string): string {
  return text.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g,
    (character) => `\\u{${character.charCodeAt(0).toString(16)}}`);
}

/** Reports an error in one line, or a bug with its stack. Ends with status 1; 2 for the usage. */
function fail(error: NodeJS.ErrnoException): void {
  const usage = error instanceof UsageError ? `${USAGE}\n` : '';
  const isBug = !(error instanceof ExpectedError || error.syscall); // syscall: which one failed
  const report = isBug ? error.stack : `client.ts: ${visible(error.message).replaceAll('\n', '\\n')}`;
  process.stdout.write('', () => { // once stdout has taken what was printed before
    process.stderr.write(`${report}\n${usage}`, () => process.exit(usage ? 2 : 1));
  });
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') console.error(`client.ts: ${error.message}`); // such as a full disk
  process.exit(1); // silently if its reader has left, as head(1) does
});
main(process.argv.slice(2)).catch(fail);
